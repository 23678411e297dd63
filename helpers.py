"""What a script of your own begins with: loading datasets, flags, errors and status lines, one run of a stage.

    from helpers import get_task, load_split
    split = load_split("demo:clinical", "train", get_task("qa"))

``from datamap import ...`` offers the library itself, also where the package is installed without this checkout.
"""

from datamap.core.artifacts import check_writable, stage
from datamap.core.errors import UserError, command_line, is_main_process, name_a_few, setup_logging
from datamap.core.flags import DEFAULT_DATASET, DEFAULT_MODEL, DEFAULT_SEED, Parser
from datamap.core.splits import Split, default_eval_split, generate_hash_ids, load_split
from datamap.tasks.registry import get_task

__all__ = [
    "DEFAULT_DATASET", "DEFAULT_MODEL", "DEFAULT_SEED", "Parser", "Split", "UserError", "check_writable",
    "command_line", "default_eval_split", "generate_hash_ids", "get_task", "is_main_process", "load_split",
    "name_a_few", "setup_logging", "stage",
]
