"""Generation: what comes out depends on the prompt alone, and the model is left as it was."""

import importlib.util
import json

import pytest
import tiny_mistral
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamap.core.errors import UserError
from datamap.thoughts import generation
from datamap.thoughts.generation import Generated, generate
from datamap.thoughts.reader import parse_thought

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [f"[INST] {'word ' * (number * 7 % 13)}premise {number} [/INST]" for number in range(20)]
needs_llguidance = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None, reason="llguidance is not installed"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_mistral.save_model(tmp_path_factory.mktemp("mistral"))


@pytest.fixture
def model(saved):
    return AutoModelForCausalLM.from_pretrained(saved)


@pytest.fixture(scope="module")
def tokenizer(saved):
    return AutoTokenizer.from_pretrained(saved)


def answers(model, tokenizer, prompts=PROMPTS, **settings):
    found: dict[int, Generated] = {}
    for places, texts in generate(
        model, tokenizer, prompts, **{"batch_size": 7, "max_new_tokens": 40, **settings}
    ):
        assert len(places) == len(texts) and not set(places) & set(found)
        found.update(zip(places, texts, strict=True))
    return [found[place] for place in range(len(prompts))]


def slow_tokens(model, tokenizer, prompt, max_new_tokens=40):
    """One prompt, no padding, no cache, the whole text through the model for every token."""
    ids = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < max_new_tokens and new[-1:] != [tokenizer.eos_token_id]:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def slow_greedy(model, tokenizer, prompt):
    new = slow_tokens(model, tokenizer, prompt)
    return Generated(tokenizer.decode(new, skip_special_tokens=True), len(new), new[-1] == tokenizer.eos_token_id)


# --- greedy ------------------------------------------------------------------------------------------------------


def test_padded_batches_give_what_one_prompt_alone_gives(model, tokenizer):
    expected = [slow_greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    assert answers(model, tokenizer) == expected
    assert {answer.finished for answer in expected} == {True, False}
    assert len({answer.text for answer in expected}) > 15  # else nothing has been told apart


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 3, "sort": False}, {"batch_size": 50}])
def test_neither_batches_nor_their_order_matter(model, tokenizer, settings):
    assert answers(model, tokenizer, **settings) == answers(model, tokenizer)


def test_the_longest_prompts_come_first(model, tokenizer):
    order = [place for places, _ in generate(model, tokenizer, PROMPTS, batch_size=6, max_new_tokens=1)
             for place in places]
    lengths = [len(tokenizer(PROMPTS[place])["input_ids"]) for place in order]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]
    unsorted = generate(model, tokenizer, PROMPTS, batch_size=6, max_new_tokens=1, sort=False)
    assert [places for places, _ in unsorted][0] == [0, 1, 2, 3, 4, 5]


def test_every_eos_of_the_generation_config_ends_a_text(model, tokenizer):
    free = answers(model, tokenizer)
    long = next(place for place, answer in enumerate(free) if not answer.finished)
    tokens = slow_tokens(model, tokenizer, PROMPTS[long])
    end = tokens[7]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    stopped = answers(model, tokenizer, [PROMPTS[long]])[0]
    assert stopped.finished and stopped.num_tokens == tokens.index(end) + 1
    assert free[long].text.startswith(stopped.text)
    assert answers(model, tokenizer, PROMPTS)[long] == stopped


@pytest.mark.parametrize("marks", [
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
])
def test_special_tokens_that_mark_reasoning_stay(saved, marks):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    special = ["[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|other|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    draft, known = (json.dumps({"thought_process": "a", "predicted_label": label}) for label in (0, 1))
    opening, closing = marks

    def read(text):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return generation._generated(tokens, [tokenizer.eos_token_id], tokenizer).text

    text = read(f"{opening}Draft {draft} no.{closing}{known}")
    assert (opening in text, closing in text, parse_thought(text).label) == (True, True, 1)
    assert parse_thought(read(f"{opening}Draft {draft} no.")).label is None
    assert parse_thought(read(f"Draft {draft} no.{closing}{known}")).label == 1  # begun by the prompt
    assert "<|other|>" not in read(f"So: {known}<|other|>")


def test_the_models_own_ideas_of_decoding_do_not_count(model, tokenizer):
    expected = answers(model, tokenizer)
    for name, value in {"do_sample": True, "temperature": 2.0, "top_k": 3, "top_p": 0.5, "num_beams": 3,
                        "repetition_penalty": 5.0, "no_repeat_ngram_size": 1,
                        "min_new_tokens": 40, "suppress_tokens": [5, 9]}.items():
        setattr(model.generation_config, name, value)
    assert answers(model, tokenizer) == expected


def test_an_eos_that_the_tokenizer_puts_behind_is_taken_off(tokenizer, saved):
    from tokenizers import processors

    other = AutoTokenizer.from_pretrained(saved)
    begin, end = (other.bos_token, other.bos_token_id), (other.eos_token, other.eos_token_id)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    assert other("word")["input_ids"][-1] == other.eos_token_id
    assert generation.encode_prompts(other, PROMPTS) == generation.encode_prompts(tokenizer, PROMPTS)


def test_no_room_for_the_answer_is_an_error(model, tokenizer):
    with pytest.raises(UserError, match="more than the 1,024 positions of the model; lower --max_new_tokens"):
        answers(model, tokenizer, max_new_tokens=1024)


def test_no_prompts_no_batches(model, tokenizer):
    assert list(generate(model, tokenizer, [], batch_size=4, max_new_tokens=4)) == []


# --- fixed shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"batch_size": 7}, {"batch_size": 3, "sort": False}, {"batch_size": 50}, {"temperature": 0.9, "seed": 3},
    {"max_new_tokens": 1},
])
def test_fixed_shapes_give_the_same_answers(model, tokenizer, settings):
    """Of prompts on both sides of a bucket's edge, in batches that are filled up; cut off, and ended by EOS."""
    prompts = [*PROMPTS, *(f"[INST] {'long ' * count} premise [/INST]" for count in range(20, 60, 7))]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert min(lengths) < generation.WIDTH < 2 * generation.WIDTH < max(lengths) + 5
    plain = answers(model, tokenizer, prompts, **settings)
    assert answers(model, tokenizer, prompts, compiled=True, **settings) == plain
    if "max_new_tokens" not in settings:
        assert {answer.finished for answer in plain} == {True, False}


def test_heads_that_share_keys_stand_together(model, tokenizer, monkeypatch):
    """The library's attention, to rounding, of texts of several lengths; and keys are not laid out for each head."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    library, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []
    attention = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 1, 8, 16, generator=generator).transpose(1, 2)  # as a layer has it
    key, value = torch.randn(2, 3, 2, 11, 16, generator=generator)
    mask = torch.arange(11)[None, None, None, :] >= torch.tensor([0, 4, 7])[:, None, None, None]
    attention.num_key_value_groups = 4
    expected, _ = library(attention, query, key, value, mask, scaling=0.3)
    found, _ = generation._attention_of_a_token(attention, query, key, value, mask, scaling=0.3)
    assert found.shape == expected.shape == (3, 1, 8, 16) and found.is_contiguous()
    torch.testing.assert_close(found, expected)
    attention.num_key_value_groups = model.config.num_attention_heads // model.config.num_key_value_heads
    assert attention.num_key_value_groups > 1
    product = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, *args, **kwargs):
        seen.append((query.shape[1], query.shape[2]))
        return product(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    answers(model, tokenizer, compiled=True)
    shared, groups = model.config.num_key_value_heads, attention.num_key_value_groups
    assert seen.count((shared, groups)) > 40 and ALL_ATTENTION_FUNCTIONS["sdpa"] is library


def test_fixed_shapes_are_few(model, tokenizer):
    """Prompts are of two widths, and so are all steps after them, each on one cache that stays where it is."""
    seen = set()
    caches: dict[int, set[int]] = {}

    def watch(module, args, kwargs):
        (rows, tokens), mask, cache = kwargs["input_ids"].shape, kwargs["attention_mask"], kwargs["past_key_values"]
        seen.add((rows, tokens, *mask.shape[2:]))
        if cache.layers[0].is_initialized:
            caches.setdefault(mask.shape[3], set()).add(cache.layers[0].keys.data_ptr())

    hook = model.model.register_forward_pre_hook(watch, with_kwargs=True)
    answers(model, tokenizer, compiled=True)
    hook.remove()
    widths = (generation.WIDTH, 2 * generation.WIDTH)
    assert seen == {(7, tokens, tokens, width + 40) for width in widths for tokens in (1, width)}
    assert [len(places) for places in caches.values()] == [1, 1]


def test_a_compiled_step_gives_the_same_answers(model, tokenizer, monkeypatch):
    """On a CPU the library compiles only if it is told to; the graph is traced, and run by PyTorch itself."""
    from transformers import CompileConfig, GenerationConfig

    class Compiled(GenerationConfig):
        def __init__(self, **settings):
            if settings.get("disable_compile") is False:
                settings["compile_config"] = CompileConfig(backend="eager", mode=None, fullgraph=True, dynamic=False)
                settings["compile_config"]._compile_all_devices = True
            super().__init__(**settings)

    few = sorted(PROMPTS, key=len)
    few = [*few[:4], *few[-4:]]  # of two widths
    assert len({len(tokenizer(prompt)["input_ids"]) // generation.WIDTH for prompt in few}) == 2
    plain = answers(model, tokenizer, few)
    monkeypatch.setattr(generation, "GenerationConfig", Compiled)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert answers(model, tokenizer, few, compiled=True, batch_size=4) == plain
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # of the steps; prompts are not compiled
    assert generation.can_compile(model)


# --- in the middle of a training ---------------------------------------------------------------------------------


def test_a_model_in_training_is_left_as_it_was(model, tokenizer):
    expected = answers(model, tokenizer)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.model.layers[0].eval()  # of one's own will
    modes = [module.training for module in model.modules()]
    own = model.generation_config
    state, counted, hidden = torch.get_rng_state(), [], []

    def count(module, given, out):
        counted.append(out[0].shape[1])
        hidden.append(out[0].requires_grad)

    hook = model.model.register_forward_hook(count)
    assert answers(model, tokenizer) == expected
    hook.remove()
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is own
    assert model.config.use_cache is False and model.is_gradient_checkpointing
    assert torch.equal(torch.get_rng_state(), state)
    assert counted.count(1) > len(counted) - 4  # one token at a time but for the prompts: the cache is used
    assert not any(hidden)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_with_an_adapter_is_left_as_it_was(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    own, expected = model.generation_config, answers(model, tokenizer)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    state = {name: value.clone() for name, value in tuned.state_dict().items()}
    assert answers(tuned, tokenizer) == expected == answers(tuned, tokenizer, compiled=True)  # it begins as nothing
    assert model.generation_config is tuned.generation_config is own
    assert tuned.training and all(torch.equal(state[name], value) for name, value in tuned.state_dict().items())


def test_modes_come_back_after_an_error_too(model, tokenizer, monkeypatch):
    model.train()
    monkeypatch.setattr(model, "generate", lambda **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(model, tokenizer)
    assert all(module.training for module in model.modules())


# --- drawing -----------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_and_prompt_only(model, tokenizer):
    drawn = answers(model, tokenizer, temperature=0.9, seed=3)
    assert answers(model, tokenizer, temperature=0.9, seed=3, batch_size=2, sort=False) == drawn
    assert answers(model, tokenizer, PROMPTS[5:8], temperature=0.9, seed=3) == drawn[5:8]
    other = answers(model, tokenizer, temperature=0.9, seed=4)
    assert not any(map(Generated.__eq__, other, drawn))
    assert answers(model, tokenizer, temperature=1e-4) == answers(model, tokenizer)


def test_draws_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf"), 2.0])
    n, temperature = 4000, 1.5
    noise = generation._GumbelNoise(temperature, range(n), torch.device("cpu"))
    for _ in range(2):  # the second token of a text as well
        drawn = noise(torch.zeros(n, 1), logits.repeat(n, 1)).argmax(dim=1)
        counts = torch.bincount(drawn, minlength=5)
        assert counts[3] == 0
        among = [0, 1, 2, 4]
        expected = n * torch.softmax(logits.double() / temperature, dim=0)
        assert stats.chisquare(counts[among], expected[among].numpy(), sum_check=False).pvalue > 1e-3


# --- a schema ----------------------------------------------------------------------------------------------------


@needs_llguidance
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_what_is_finished_under_the_constraint_is_an_answer(model, tokenizer, temperature):
    constraint = generation.SchemaConstraint(model, tokenizer)
    found = answers(model, tokenizer, constraint=constraint, max_new_tokens=120, temperature=temperature, seed=1)
    assert {answer.finished for answer in found} == {True, False}
    for answer in found:
        if answer.finished:
            parsed = parse_thought(answer.text)
            assert parsed.method == "strict" and parsed.label in (0, 1)
            assert list(json.loads(answer.text)) == ["thought_process", "predicted_label"]
        elif not answer.text.endswith("}"):
            assert parse_thought(answer.text).label is None
    if temperature == 1.0:
        again = answers(model, tokenizer, constraint=constraint, max_new_tokens=120, temperature=temperature, seed=1,
                        batch_size=2, sort=False)
        assert again == found


@needs_llguidance
def test_the_constraint_takes_what_the_model_was_trained_to_write(model, tokenizer):
    """Also where the output layer has more rows than the tokenizer has tokens."""
    from datamap.thoughts.reader import completion_text

    model.resize_token_embeddings(len(tokenizer) + 7)
    constraint = generation.SchemaConstraint(model, tokenizer)
    for text in (completion_text('Step 1: "so" {said} \\ it is.\n2: é', 1), " " + completion_text("x", 0)):
        tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        mask, written = constraint.processor(1), [tokenizer.bos_token_id]
        for token in tokens:
            scores = mask(torch.tensor([written]), torch.zeros(1, len(tokenizer) + 7))
            assert scores[0, token] == 0, tokenizer.decode(written)
            assert not torch.isfinite(scores[0, len(tokenizer) :]).any()
            written.append(token)
        only_end = mask(torch.tensor([written]), torch.zeros(1, len(tokenizer) + 7))
        assert torch.isfinite(only_end).nonzero().tolist() == [[0, tokenizer.eos_token_id]]


def test_without_the_library_the_message_says_how_to_get_it(model, tokenizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--constrained needs llguidance, .*: pip install llguidance"):
        generation.SchemaConstraint(model, tokenizer)
