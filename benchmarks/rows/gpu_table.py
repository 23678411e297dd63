"""The rows that need a GPU: bench_gpu.py measures them, and run_all.py shows what it left.

A new row is a function of a Setting that gives a Found, and a line here. Its minutes are what it may take: by then it
is stopped, so that all of them end in time.
"""

from __future__ import annotations

from rows import gpu_training
from rows.table import Row

SIDES = ("without recording; a bare PyTorch loop over batches that lie on the card; the library's Trainer with random "
         "batches, and with its own grouping by length")
GPU_ROWS = (
    Row(0, "gpu_qa", "QA, the shape of BERT-base, about 114 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; compiled 1.5 x; recording at most 1 %; one wait a step", 1.7, gpu_training.questions),
    Row(0, "gpu_sentences_small", "sentences, the shape of ELECTRA-small, about 23 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; compiled 2 x; recording at most 1 %; one wait a step", 1.6,
        gpu_training.small_sentences),
    Row(0, "gpu_sentences_base", "sentences, the shape of BERT-base, about 23 tokens, batch 32, bf16", SIDES,
        ".95 x of the bare loop; compiled 2 x; recording at most 1 %; one wait a step", 1.6, gpu_training.sentences),
    Row(0, "gpu_embeddings", "embeddings of sentences, the shape of BERT-base", "sentence-transformers `encode`, same "
        "weights, pooling, precision", "1.0 x", 0.5, gpu_training.embeddings),
)
