"""benchmarks/rows/gpu_thoughts.py: every line runs at tiny sizes on a CPU, and both sides learn the same."""

import importlib

import pytest
import torch
from conftest import REPOSITORY

from datamap.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("rows.gpu_thoughts")


@pytest.fixture
def setting(rows, tmp_path):
    return importlib.import_module("timing").Setting(None, True, tmp_path, tmp_path, {})


def test_qlora_of_both_sides_has_the_same_losses(rows, setting):
    pytest.importorskip("bitsandbytes")
    found = rows.qlora(setting)
    by_name = {measure.what: measure for measure in found.measures}
    assert by_name["QLoRA, ours / TRL's defaults"].least == 1.8
    assert all(measure.found > 0 for measure in found.measures if "tokens/s" in measure.unit)
    assert by_name["QLoRA, losses of the steps apart, the most"].found < 0.1
    theirs, _ = found.details["losses"]
    assert len(theirs) == 2 and theirs[0] != theirs[1]
    assert found.details["rows_at_once"] == 4 and 40 < found.details["tokens"] < 60


def test_answers_are_timed(rows, setting):
    found = rows.answers(setting)
    names = [measure.what for measure in found.measures]
    assert len(names) == len(set(names)) == 16 and "answers, 3 at once, compiled: of the bandwidth" in names
    assert all(measure.found > 0 for measure in found.measures if "compiling" not in measure.what)


def test_out_of_memory_and_no_gpu_are_told_in_one_line(rows, setting):
    with pytest.raises(UserError, match="the GPU has no room for answers: lower BATCHES in benchmarks/rows/"):
        with rows.room("answers", "BATCHES"):
            raise torch.OutOfMemoryError("CUDA out of memory")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is none here; --quick shows"):
            rows.device_of(setting._replace(quick=False))
