"""--bf16 on a CPU: products are rounded to bfloat16, what is recorded is computed from the logits in float32."""

import numpy as np
import pytest
import torch

import run
from datamap.cartography.dynamics import read_dynamics


@pytest.mark.usefixtures("one_thread")
def test_recorded_confidences_are_those_of_float32(qa_dir, tiny_model, tmp_path):
    seen = {}
    for name, flags in (("full", []), ("half", ["--bf16"])):
        run.main(["--do_train", "--enable_cartography", "--dataset", str(qa_dir), "--model", str(tiny_model),
                  "--no_cuda", "--max_length", "64", "--doc_stride", "20", "--num_train_epochs", "1",
                  "--learning_rate", "1e-12", *flags, "--output_dir", str(tmp_path / name),
                  "--cartography_output_dir", str(tmp_path / f"{name}-map")])
        [seen[name]] = read_dynamics(tmp_path / f"{name}-map")
    assert list(seen["full"]["id"]) == list(seen["half"]["id"]) and len(seen["full"]["id"]) > 20
    for column in ("confidence", "start_confidence", "end_confidence", "loss", "el2n", "aum"):
        full, half = (np.asarray(seen[name][column], dtype=np.float64) for name in ("full", "half"))
        # Eight bits of a logit.
        assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max(), column
        rounded = torch.tensor(half).bfloat16().double().numpy()
        assert (np.abs(half - rounded) > 2e-6).mean() > 0.5, f"{column} is computed in bfloat16"
