"""The rows that need a GPU: bench_gpu.py measures them, and run_all.py shows what it left.

A new row is a function of a Setting that gives a Found, and a line here. Its minutes are its share of the time that
all of them may take: what runs longer is stopped.
"""

from __future__ import annotations

from rows import gpu_thoughts, gpu_training
from rows.table import Row

SIDES = ("without recording; a bare PyTorch loop over batches that lie on the card; the library's Trainer with random "
         "batches, and with its own grouping by length")
GPU_ROWS = (
    Row(0, "gpu_qa", "QA, the shape of BERT-base, about 114 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; with CUDA graphs 1.5 x; recording at most 1 %; one wait a step", 1.1,
        gpu_training.questions),
    Row(0, "gpu_sentences_small", "sentences, the shape of ELECTRA-small, about 23 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; with CUDA graphs 2 x; recording at most 1 %; one wait a step", 1.0,
        gpu_training.small_sentences),
    Row(0, "gpu_sentences_base", "sentences, the shape of BERT-base, about 23 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; with CUDA graphs 2 x; recording at most 1 %; one wait a step", 1.0,
        gpu_training.sentences),
    Row(0, "gpu_embeddings", "embeddings of sentences, the shape of BERT-base", "sentence-transformers `encode`, same "
        "weights, pooling, precision", "1.0 x", 0.3, gpu_training.embeddings),
    Row(0, "gpu_qlora", "QLoRA, the shape of a model of 7B, about 335 tokens, 64 rows a step",
        "TRL's defaults at the same step", "1.8 x; the same losses", 1.3, gpu_thoughts.qlora),
    Row(0, "gpu_answers", "answers of a model of 7B in bf16, 48 tokens, 32 and 128 at once",
        "the library's `generate` with a cache that grows", "5 x", 1.6, gpu_thoughts.answers),
)
