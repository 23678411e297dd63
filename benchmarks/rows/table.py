"""The table: every row, what it is held against, what is asked of it, and the function that measures it.

A new row is a function of a Setting that gives a Found, and a line here; ``run_all.py --page_only`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from timing import Found, Setting

from rows import (
    chains,
    growth,
    long_documents,
    maps,
    precision,
    processes,
    questions,
    scale,
    selectors,
    suites,
    training,
    vectors,
)


class Row(NamedTuple):
    """number: in the table of what is asked; 0 for what is watched besides. minutes: about, on two cores. measure:
    None where what it is about is not built. remark: why a bound is not kept, what was tried, how to read it."""

    number: int
    name: str
    what: str
    against: str
    asked: str
    minutes: float
    measure: Callable[[Setting], Found] | None
    remark: str = ""

    @property
    def key(self) -> str:
        return str(self.number or self.name)

    @property
    def file(self) -> str:
        return f"{self.number:02}_{self.name}.json" if self.number else f"{self.name}.json"


FORMS = ("the library's question-answering example (dynamic padding, random batches); the same with its own grouping "
         "by length; padding to 512; a bare PyTorch loop over pre-tokenised, length-sorted tensors")
ROWS = (
    Row(1, "training_qa", "training, examples a second, QA, policyqa, a real 6-layer encoder, recording on", FORMS,
        "1.6 x; 1.0 x; 8 x; .95 x", 10.5, training.question_answering,
        "Of few rows the batches hold rows of more different lengths (positions of batches / tokens), as they are "
        "drawn from small pools, so that the same rows do not come together in every epoch; sorted once for all, as "
        "in the loop, they would. That is what is missing to 1.6 x and 8 x, and most of what is missing to the loop, "
        "from which the library's own Trainer, grouped by length, is as far. Larger pools were not tried: they "
        "change every training on few rows, and all that is recorded of them. Padding to 512 was measured on a "
        "quarter of the rows."),
    Row(2, "training_sentences", "the same for sentence pairs (sick_nli) and sentences (sst2), and for a small model",
        "as row 1, padding to 128", "1.2 x; .95 x of the bare loop", 5.5, training.sentences,
        "The bare loop: the library's own Trainer, grouped by length, is as far from it as ours is; what a step of it "
        "costs beside the model weighs the more, the smaller the model is, and few rows are padded more (row 1). A "
        "step of ours neither counts the weights nor walks through the modules again, as the library's does; what is "
        "left is the library's loop. Padding to 128 was measured on a quarter of the rows."),
    Row(3, "recording", "recording", "off", "costs at most 1 % and .3 s", 3, training.recording,
        "Epochs differ by more from one to the next than the percent that is asked, so that their ratio does not "
        "tell it; by its own clock the recorder keeps it (seconds in the recorder). The first map of a process "
        "imports what draws it; later ones keep the bound. To import that beside the training was not tried: it "
        "would take its time from the steps."),
    Row(4, "bf16", "bf16 on a CPU that computes in it", "float32",
        "says what is gained, at equal accuracy over 5 seeds", 10, precision.bf16,
        "On by default it would be where both hold. What is gained holds; that the scores are the same to a point is "
        "not what five seeds show: so it is off by default. More seeds were not tried."),
    Row(5, "windows", "windows with labels from 50,000 QA pairs", "the library example's loop over the windows", "5 x",
        1.5, questions.windows,
        "Both sides call the same tokenizer. Tried and kept: each text is tokenised once, and the windows are cut "
        "out of flat arrays instead of being the tokenizer's pairs. Ours writes more columns, which costs what is "
        "gained where no text is shared."),
    Row(6, "answers", "span search and scores, 50,000 windows", "the library example's post-processing; SQuAD's "
        "formula example by example, and torchmetrics' form of it", "20 x; 5 x", 0.7, questions.answers,
        "20 x was asked when the loops made a set of punctuation anew for every character; now they make it once, as "
        "SQuAD's script does for a text. The ratio is also another on another processor. Ours searches all "
        "windows at once in numpy; to compile it was not tried. evaluate's squad must be loaded from the Hub: its "
        "formula was written anew."),
    Row(7, "embeddings", "embeddings: 3,000 sentences; 300 sentences", "sentence-transformers `encode`, same weights, "
        "pooling, precision", "1.3 x; 1.0 x", 3, vectors.embeddings,
        "Ours sorts by tokens, sentence-transformers by characters: that ours pads less (positions of batches / "
        "tokens) is what it gains, the rest is the same encoder. As hardly anything is padded any more, there is "
        "little left to try."),
    Row(8, "rules", "rules, 100,000 examples", "row-wise `DataFrame.apply`", "10 x", 0.8, maps.rules),
    Row(9, "loading", "loading and filtering 1,000,000 short texts", "pandas round trip", "5 s, 2 s, 1 GB", 1,
        maps.loading,
        "Filtering: most of it is reading the CSV of a map, all of it, and making sure that it is whole and that "
        "pandas would read the same, which pandas itself need not. Tried and kept: Arrow's reader in place of "
        "pandas' own."),
    Row(10, "dynamics", "dynamics of 1,000,000 examples and 10 epochs: metrics, CSV, JSON, picture; then the joined "
        "table", "-", "12 s, 1 GB; 25 s, 1.5 GB", 2.2, maps.dynamics,
        "Most of it is reading the JSON of ten epochs. To read one while the last is used was tried: a little less "
        "time, for more memory than row 16 allows. Above 2,000,000 examples it is Parquet (ten_million)."),
    Row(11, "clusters", "clusters, 22,000 and 60,000 x 50; the picture", "hdbscan; fast_hdbscan",
        "2.5 x where the partition agrees; a picture that nobody asked UMAP for does not wait for its compiler", 9.5,
        vectors.clusters,
        "hdbscan stays the reference, and up to --max_cluster_points rows (50,000) ours is hdbscan. fast_hdbscan was "
        "tried: in its first call on many rows it compiles itself, longer than hdbscan takes for 22,000 rows (its "
        "first round), and with noise its partition is another. Without noise it is the same, and faster once "
        "compiled; but whether there is noise is known only afterwards. Of more rows ours clusters a sample and "
        "assigns the others to its clusters."),
    Row(12, "selectors", "k-center, herding, k-means on 67,349 x 768", "the forms in which they are commonly written",
        "as the bounds below", 4.5, selectors.ratios,
        "Slow forms and steps of herding are timed over 200 steps and scaled. A third of MiniBatchKMeans' "
        "time is asked since our k-means keeps rare clusters, which MiniBatchKMeans loses."),
    Row(13, "chain", "the whole chain on 2,500 and on 100,000 examples (dynamics given), one command",
        "stage by stage in processes of their own", "imports and loads once", 4, processes.chain,
        "Apart, every stage imports its libraries and reads its data anew; what both take besides is the same work."),
    Row(14, "suite_runs", "a run in a suite beyond its training", "a cold process", "20 x less", 1.5, suites.overhead),
    Row(15, "start", "`--help` and an argument error of every script; `import datamap`",
        "`python -c pass`; `import torch` for run.py's first step", ".3 s more; nothing imported before it is needed",
        1.4, processes.start,
        "A training imports transformers, datasets and accelerate beside torch, which takes the time; so it is of "
        "run.py alone, and nothing else imports them before it must. The library's Trainer brings peft, bitsandbytes "
        "and torch's compiler along, needed or not: to keep them out was not tried."),
    Row(16, "recording_memory", "memory of a training with recording", "without",
        "at most 40 bytes more an example and epoch", 2.5, training.memory,
        "By how much more recording raises the peak of many examples than of few. With few the libraries that draw "
        "the map raise it; with many it lies elsewhere in the training, and what the recorder holds, which "
        "ten_million measures by itself, stays below it: so less than nothing is left. To read an epoch ahead while "
        "the last is used was tried: less time for row 10, but more than is allowed here."),
    Row(17, "growth", "growth of rows 5 to 13 up to 1,000,000 rows, the exponent fitted", "-",
        "at most n log n but for clusters", 19.5, growth.growth,
        "Answers stop at 100,000, as the logits of a million are 7 GB, suspects where row 13 does, windows and "
        "embeddings where a size would take more than 90 s. Whole processes (the joined table, suspects) mostly "
        "start at the small sizes, which makes their exponents small; of more than 50,000 rows a sample is "
        "clustered, which makes that of clusters smaller."),
    Row(18, "empty_windows", "training on long documents, of which most windows hold no answer", "all windows",
        "`--empty_windows SHARE`: 5 x at no worse exact match over 5 seeds", 31, long_documents.empty_windows,
        "All windows stay the default. All windows of policies teach this reader nothing more, and that the share is "
        "no worse is not shown there; of the notes, which a model learns from nothing, it answers more exactly by "
        "the share, in as many epochs. As many questions and epochs as would teach a reader something from policies "
        "take longer than a row may, and were not tried."),
    Row(0, "ten_million", "dynamics of 10,000,000 examples and 5 epochs in Parquet: metrics, categories and pictures; "
        "filters; what the recorder holds", "-", "120 s, 2 GB; 30 s", 4, scale.ten_million),
    Row(0, "lstm", "an epoch over long stories: the LSTM classifiers", "the small Transformer", "", 0.7,
        training.lstm),
    Row(0, "suspects", "from finished artifacts of 100,000 examples to suspects.csv, to the page, and to the page in "
        "use", "-", "", 2.5,
        maps.suspects),
    Row(0, "suite_ends", "resuming a finished suite of 200 runs; comparing 498 runs of 5,000 predictions", "-", "",
        1.5, suites.ends),
    Row(0, "chat_server", "answers of a chat server that takes 200 ms for each, 8 at a time", "workers / latency", "",
        1.2, chains.served),
    Row(0, "sorted_batches", "generating in batches sorted by length", "batches as they come", "", 1.2,
        chains.sorted_batches),
    Row(0, "position", "the interval of a judge's leaning by position, for judges that are made up",
        "Wilson's, over answers", "", 0.3, chains.position),
    Row(0, "soft_weights", "by how much soft weights move the learning rate", "weights that are 1 on average over "
        "examples", "", 0.2, training.soft_weights),
)
