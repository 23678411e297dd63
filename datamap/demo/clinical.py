"""Built-in question answering over short clinical notes, with annotation errors planted where we know them.

Every sentence of a note states at most one fact, every question asks about one kind of fact, and a note states each
kind at most once, so exactly one sentence answers a question. A tenth of the training examples carry a planted error,
named in the column `planted_error`; no stage reads that column, a benchmark does.

The notes are made up: nobody was treated, and nothing here is medical advice.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np

from datamap.demo.draws import pick, shuffled
from datamap.demo.planting import QUESTION_KINDS, Asked, Passage, Span, corrupted, error_plan, malformed

PLANTED_ERRORS = QUESTION_KINDS
ERROR_SHARE = 0.1
SIZES = {"train": 2500, "validation": 400}
QUESTIONS_PER_NOTE = 6
LONG_SHARE = 0.08  # notes of wordy sentences, which need a second window at --max_length 128

# A sentence template marks its answer: [ ] is the first gold answer, < > is another one that is as right.
# Slots in { } are filled from the patient (one value a note), so a question can name what its sentence names.
SENTENCES: dict[str, tuple[str, ...]] = {
    "age": (
        "{Subj} is a <[{age}] year old> {person} living {living}.",
        "This <[{age}] year old> {person} came in with {complaint}.",
        "The {person} is <[{age}] years old> and has been troubled by {complaint}.",
        "At <[{age}] years> of age, {subj} still lives {living}.",
        "The stated age is <[{age}] years> and {subj} lives {living}.",
    ),
    "medication": (
        "{Subj} was started on [{drug}] for {aim}.",
        "The team prescribed <[{drug}] tablets> for {aim}.",
        "A new prescription for [{drug}] was written for {aim}.",
        "Treatment with <oral [{drug}]> was begun for {aim}.",
        "{Subj} takes [{drug}] as the only regular medication.",
        "The medication list shows [{drug}], taken for {aim}.",
    ),
    "dose": (
        "The dose of the {drug_class} was set at [<{amount}> {amount_unit}].",
        "The {drug_class} was given at a dose of [<{amount}> {amount_unit}].",
        "{Subj} tolerated the {drug_class} well at a dose of [<{amount}> {amount_unit}].",
        "The {drug_class} dose was raised to [<{amount}> {amount_unit}].",
        "The pharmacist ordered a [<{amount}> {amount_unit}] dose of the {drug_class}.",
    ),
    "frequency": (
        "The {therapy} should be used [{interval}] until the next visit.",
        "{Subj} was told to use the {therapy} [{interval}].",
        "Nursing staff were asked to give the {therapy} [{interval}].",
        "The schedule for the {therapy} is [{interval}].",
        "{Subj} has been using the {therapy} [{interval}] without trouble.",
    ),
    "lab value": (
        "The {lab} level was [<{value}> {unit}] on the blood test.",
        "Laboratory work showed the {lab} to be [<{value}> {unit}].",
        "The {lab} was measured at [<{value}> {unit}] by the laboratory.",
        "Blood work put the {lab} at [<{value}> {unit}].",
        "The laboratory reported the {lab} as [<{value}> {unit}].",
    ),
    "date": (
        "{Subj} was admitted on [<{day}>, {year}] from the clinic.",
        "The admission took place on [<{day}>, {year}] at short notice.",
        "Admission was arranged for [<{day}>, {year}] by the family doctor.",
        "{Subj} was admitted to the ward on [<{day}>, {year}].",
        "The date of admission was [<{day}>, {year}].",
    ),
    "diagnosis": (
        "{Subj} was diagnosed with <{degree} [{disease}]>.",
        "The findings were consistent with a diagnosis of [{disease}].",
        "The final diagnosis was <{degree} [{disease}]>.",
        "Imaging confirmed the diagnosis of [{disease}].",
        "After review, the working diagnosis of [{disease}] was kept.",
        "The consultant made a diagnosis of [{disease}].",
    ),
    "procedure": (
        "{Subj} underwent <{article} [{procedure}]> without complications.",
        "The surgeons performed <{article} [{procedure}]> under sedation.",
        "<{Article} [{procedure}]> was performed and was well tolerated.",
        "{Subj} underwent <{article} [{procedure}]> under local anesthesia.",
        "The procedure, <{article} [{procedure}]>, was carried out without delay.",
    ),
    "allergy": (
        "{Subj} is allergic to [{allergen}], which led to {reaction}.",
        "There is a known allergy to [{allergen}] with {reaction}.",
        "The chart lists an allergy to [{allergen}] with {reaction}.",
        "{Subj} reports an allergic reaction to [{allergen}] in the form of {reaction}.",
        "An allergy band was placed because of {reaction} after [{allergen}].",
    ),
    "disposition": (
        "{Subj} was discharged to <{det} [{place}]> in {condition} condition.",
        "At discharge {subj} was transferred to <{det} [{place}]>.",
        "The discharge plan was a move to <{det} [{place}]>.",
        "{Subj} left in {condition} condition and was discharged to <{det} [{place}]>.",
        "Discharge to <{det} [{place}]> was arranged by the social worker.",
    ),
}

# Two kinds have one phrasing that does not begin with a question word, as real data has.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "age": (
        "How old is the patient?", "What is the age of the patient?", "How old is this {person}?",
        "What age is given in the note?", "How many years old is the {person}?",
    ),
    "medication": (
        "Which medication was prescribed?", "What drug does the patient take?", "Which drug was the {person} given?",
        "What medication is the patient on?", "What is the name of the prescribed drug?",
        "Name the medication that the {person} takes.",
    ),
    "dose": (
        "What dose of the {drug_class} was given?", "What was the dose of the {drug_class}?",
        "At what dose was the {drug_class} ordered?", "How much of the {drug_class} is in each dose?",
        "Which dose of the {drug_class} does the patient get?",
    ),
    "frequency": (
        "How often is the {therapy} used?", "How often should the patient use the {therapy}?",
        "How frequently is the {therapy} given?", "What is the schedule for the {therapy}?",
        "At what intervals is the {therapy} given?",
    ),
    "lab value": (
        "What was the {lab} level?", "What was the result of the {lab} test?",
        "What {lab} value did the laboratory report?", "How high was the {lab}?",
        "Which {lab} result was measured in the blood?",
    ),
    "date": (
        "When was the patient admitted?", "On what date was the {person} admitted?",
        "When did the admission take place?", "What was the date of admission?",
        "On which day was the patient admitted?", "Give the date of the admission.",
    ),
    "diagnosis": (
        "What was the diagnosis?", "What was the patient diagnosed with?", "Which condition was diagnosed?",
        "Which diagnosis did the doctors make?", "What disease does the {person} have?",
    ),
    "procedure": (
        "What procedure was performed?", "Which procedure did the patient undergo?",
        "What operation did the {person} undergo?", "Which operation was performed?",
        "What procedure was carried out on the {person}?",
    ),
    "allergy": (
        "What is the patient allergic to?", "Which allergy does the patient have?",
        "What allergy is listed in the chart?", "To what is the {person} allergic?",
        "Which substance causes an allergic reaction?",
    ),
    "disposition": (
        "Where was the patient discharged to?", "Where did the {person} go after discharge?",
        "To what place was the patient discharged?", "Where was the {person} sent at discharge?",
        "What was the discharge destination?",
    ),
}
KINDS = tuple(SENTENCES)

FILLERS = (
    "Vital signs were stable throughout the stay.",
    "The family was updated at the bedside.",
    "The rest of the examination was unremarkable.",
    "{Subj} slept well and had no complaints.",
    "The physical therapist came to the ward.",
    "No fever was noted.",
    "{Subj} was eating and walking without help.",
    "All questions were answered.",
    "The lungs were clear and the abdomen was soft.",
)

# Clauses that make a sentence wordy and state no fact; one that begins with a comma goes behind the sentence.
CLAUSES = (
    "After a long conversation with the family and the covering team, ",
    "As documented in the chart by the nurse who was in charge of the ward, ",
    "According to the records that were sent over by the referring clinic, ",
    "As far as could be made out from the notes of the previous team, ",
    ", and this was explained in detail to the relatives who were waiting outside",
    ", as was discussed at some length during the ward round with all of the team present",
    ", and nothing about this has changed since the team last looked into it",
    ", which was written down in the chart so that the next shift would know about it",
)

POOLS: dict[str, tuple[str, ...]] = {
    "living": ("alone", "with family", "on a farm", "with a brother", "near the coast", "in a small flat"),
    "complaint": ("stomach pain", "a cough", "joint pain", "dizziness", "weakness", "nausea", "fatigue"),
    "aim": ("symptom control", "prevention", "comfort", "pain relief", "better sleep", "blood pressure"),
    "drug": (
        "aspirin", "lisinopril", "metformin", "atorvastatin", "warfarin", "omeprazole", "amlodipine", "gabapentin",
        "sertraline", "levothyroxine", "prednisone", "clopidogrel", "furosemide", "metoprolol", "losartan",
        "pantoprazole", "tramadol", "doxycycline", "carvedilol", "spironolactone", "citalopram", "allopurinol",
    ),
    "therapy": (
        "inhaler", "eye drops", "nasal spray", "hand cream", "compression wrap", "mouth rinse", "heat pack",
        "breathing mask", "nebulizer", "wrist brace",
    ),
    "interval": (
        "twice daily", "once daily", "three times a day", "every four hours", "every six hours", "every eight hours",
        "every morning", "every other day", "once a week", "every night", "four times a day", "every evening",
    ),
    "degree": ("mild", "moderate", "severe", "acute", "chronic"),
    "disease": (
        "pneumonia", "heart failure", "pancreatitis", "atrial fibrillation", "cellulitis", "kidney stones", "anemia",
        "asthma", "diverticulitis", "deep vein thrombosis", "hepatitis", "gout", "bronchitis", "pulmonary embolism",
        "appendicitis", "iron deficiency", "sinusitis", "osteoarthritis",
    ),
    "procedure": (
        "colonoscopy", "bronchoscopy", "hip replacement", "cardiac catheterization", "lumbar puncture",
        "hernia repair", "liver biopsy", "knee arthroscopy", "gastroscopy", "bypass operation", "skin graft",
        "chest drain insertion", "pacemaker implantation", "thyroid resection", "coronary stent placement",
    ),
    "allergen": (
        "penicillin", "latex", "shellfish", "peanuts", "sulfa drugs", "iodine contrast", "bee stings", "codeine",
        "tree nuts", "eggs", "cephalosporins", "adhesive tape", "morphine", "strawberries",
    ),
    "reaction": ("hives", "a rash", "swelling", "wheezing", "itching", "vomiting"),
    "condition": ("good", "stable", "fair", "satisfactory"),
    "place": (
        "skilled nursing facility", "rehabilitation center", "nursing home", "hospice", "psychiatric unit",
        "long-term care hospital", "group home", "transitional care unit", "assisted living residence", "shelter",
    ),
}
# Ages, laboratory values and doses use numbers of different sizes, each seen often, so that a tiny model need not
# learn to read the unit behind a number before it can learn to read the question.
DOSES = (
    ("antibiotic", "mg"), ("painkiller", "mg"), ("antiviral", "mg"), ("antifungal", "mg"), ("anticonvulsant", "mg"),
    ("iron supplement", "mg"), ("calcium supplement", "mg"), ("muscle relaxant", "mg"), ("antimalarial", "mg"),
    ("antacid", "mg"), ("vitamin supplement", "mcg"), ("folic acid", "mcg"),
)
AMOUNTS = ("200", "250", "300", "350", "400", "450", "500", "550", "600", "650", "700", "750", "800", "1000")
LABS = (  # name, unit, lowest, highest; even numbers only
    ("sodium", "mmol/L", 118, 152), ("chloride", "mmol/L", 96, 118), ("creatinine", "umol/L", 96, 150),
    ("hemoglobin", "g/L", 96, 150), ("glucose", "mg/dL", 96, 152), ("ferritin", "mcg/L", 96, 150),
    ("cholesterol", "mg/dL", 110, 152), ("troponin", "ng/L", 96, 140), ("triglyceride", "mg/dL", 100, 152),
    ("ammonia", "umol/L", 96, 130), ("lipase", "U/L", 96, 150), ("amylase", "U/L", 100, 150),
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)

CUT_OFF = ("What is the", "What was", "Which of", "What", "Was the patient", "Is the")
LITTLE_WORDS = ("the", "of", "was", "is", "a", "what", "to", "in", "this", "patient")


def build(rng: np.random.Generator, split: str, num_examples: int) -> list[dict[str, Any]]:
    errors = [""] * num_examples
    if split == "train":
        errors = error_plan(rng, PLANTED_ERRORS, num_examples, round(num_examples * ERROR_SHARE))
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < num_examples:
        note = _note(rng)
        # The text alone decides the split, so no two splits share a note, whatever their seeds and sizes.
        if zlib.crc32(note.text.encode()) % 2 != (split == "validation") or note.text in seen:
            continue
        seen.add(note.text)
        asked = rng.permutation(len(note.asked))[:QUESTIONS_PER_NOTE]
        for index in asked[: num_examples - len(rows)]:
            rows.append(_row(rng, note, note.asked[index], errors[len(rows)]))
    return rows


def _row(rng: np.random.Generator, note: Passage, fact: Asked, error: str) -> dict[str, Any]:
    question, kind, golds = fact.question, fact.kind, fact.golds[:1] if error else fact.golds
    if error == "malformed_question":
        question = malformed(rng, question, CUT_OFF, LITTLE_WORDS)
    elif error:
        found = corrupted(rng, note, fact, error)
        assert found is not None, "every note has several sentences and facts"
        if found.answer:
            golds = [found.answer]
        elif found.question:
            question = found.question
            kind = next(other.kind for other in note.asked if other.question == question)
    return {
        "context": note.text,
        "question": question,
        "answers": {"text": [note.text[a:b] for a, b in golds], "answer_start": [a for a, _ in golds]},
        "question_type": kind,
        "planted_error": error,
    }


def _note(rng: np.random.Generator) -> Passage:
    """A note of 4 to 9 sentences, each fact's first gold answer standing in it only once."""
    while True:
        note = _draft(rng)
        firsts = [note.text[slice(*fact.golds[0])] for fact in note.asked]
        if all(len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", note.text, re.IGNORECASE)) == 1 for text in firsts):
            return note


def _draft(rng: np.random.Generator) -> Passage:
    patient = _patient(rng)
    wordy = rng.random() < LONG_SHARE
    num_sentences = pick(rng, (7, 8, 9) if wordy else (4, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 9))
    num_fillers = min(int(rng.integers(0, 3)), num_sentences - 4)
    kinds = shuffled(rng, KINDS)[: num_sentences - num_fillers]
    # The patient is introduced first and sent away last; what happens between has no order.
    middle = [kind for kind in kinds if kind not in ("age", "disposition")] + [""] * num_fillers
    order = ["age"] * ("age" in kinds) + shuffled(rng, middle) + ["disposition"] * ("disposition" in kinds)

    text, sentences, facts = "", [], []
    fillers, clauses = shuffled(rng, FILLERS), shuffled(rng, CLAUSES) if wordy else []
    for number, kind in enumerate(order):
        template = pick(rng, SENTENCES[kind]) if kind else fillers.pop()
        subject = pick(rng, ("the patient", "he" if patient["person"] in ("man", "gentleman") else "she"))
        sentence = template.format(**patient, subj=subject, Subj=subject[0].upper() + subject[1:])
        if clauses:
            sentence = _join(sentence, clauses.pop())
        plain, golds = _parse_marks(sentence)
        text += " " if text else ""
        if kind:
            question = pick(rng, QUESTIONS[kind]).format(**patient)
            facts.append(Asked(question, [(a + len(text), b + len(text)) for a, b in golds], (number, number), kind))
        sentences.append((len(text), len(text) + len(plain)))
        text += plain
    return Passage(text, sentences, facts)


def _patient(rng: np.random.Generator) -> dict[str, str]:
    """One value for every slot of the templates."""
    words = {slot: pick(rng, pool) for slot, pool in POOLS.items()}
    drug_class, amount_unit = pick(rng, DOSES)
    lab, unit, low, high = pick(rng, LABS)
    article = "an" if words["procedure"][0] in "aeiou" else "a"
    return words | {
        "person": pick(rng, ("man", "woman", "gentleman", "lady")),
        "age": str(rng.integers(19, 94)),
        "drug_class": drug_class,
        "amount": pick(rng, AMOUNTS),
        "amount_unit": amount_unit,
        "lab": lab,
        "unit": unit,
        "value": str(rng.integers(low // 2, high // 2 + 1) * 2),
        "day": f"{pick(rng, MONTHS)} {rng.integers(1, 29)}",
        "year": str(rng.integers(2008, 2025)),
        "article": article,
        "Article": article.capitalize(),
        "det": "an" if words["place"][0] in "aeiou" else "a",
    }


def _join(sentence: str, clause: str) -> str:
    """The same statement in more words."""
    if clause.startswith(","):
        return sentence.removesuffix(".") + clause + "."
    first = next(i for i, char in enumerate(sentence) if char.isalpha())  # a mark may stand before it
    return clause + sentence[:first] + sentence[first].lower() + sentence[first + 1 :]


def _parse_marks(marked: str) -> tuple[str, list[Span]]:
    """Text without its answer marks, and the marked spans: the one in [ ] first, then the one in < >."""
    plain, starts, spans = "", {}, {}
    for char in marked:
        if char in "[<":
            starts[char] = len(plain)
        elif char in "]>":
            opening = "[" if char == "]" else "<"
            spans[opening] = (starts[opening], len(plain))
        else:
            plain += char
    return plain, [spans[mark] for mark in "[<" if mark in spans]
