"""How many small faults in the heart of this project its tests notice: a mutation check.

pip install cosmic-ray; python benchmarks/mutants.py [--mutants 500] [--record FILE.json]

A mutant is one changed operator, number or condition of a module, drawn by a seed from all that
cosmic-ray makes; the module's tests run with it, in a copy of the checkout. Those that survive are
printed: tests to write, or changes that make no difference.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db

from harness import ROOT, start_record

# module → tests that must notice
HEART = {
    "datasets/groundtruth.py": "tests/datasets/test_groundtruth.py tests/datasets/test_check.py",
    "datasets/sampling.py": "tests/datasets/test_sampling.py",
    "helpers/audio/patches.py": "tests/helpers/test_patches.py",
    "helpers/reports/metrics.py": "tests/helpers/test_ranking.py tests/helpers/test_metrics.py",
    "models/sizes.py": "tests/models/test_sizes.py",
}
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
TIME_LIMIT = 120  # seconds; a mutant may loop for ever


class _Bare(ast.NodeTransformer):
    """Takes away annotations, which do nothing when the program runs."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        return node


def differs(mutation: Any) -> bool:
    """Whether a mutation changes more than annotations."""
    source = Path(mutation.module_path).read_text("utf-8")
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    try:
        codes = source, mutate_code(source, operator, mutation.occurrence)
        before, after = (ast.dump(_Bare().visit(ast.parse(code))) for code in codes)
    except (SyntaxError, AttributeError):
        # The star before keyword-only arguments is no product; cosmic-ray fails on errors that are
        # named with their module.
        return False
    return before != after


def drawn(mutants: int) -> list[Any]:
    """So many mutations of all modules together."""
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/db", WorkDB.Mode.create) as db:
        init([Path(name) for name in HEART], db, {})
        items = [item.mutations[0] for item in db.work_items]
    random.Random(0).shuffle(items)
    return list(islice(filter(differs, items), mutants))


def enter_a_copy(folder: str) -> None:
    """Give this process a checkout of its own, and go there."""
    place = Path(folder, str(os.getpid()))
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "exp_logs", "records", "data"))
    os.chdir(place)


def survives(mutation: Any) -> tuple[str, bool, str]:
    module = Path(mutation.module_path).as_posix()
    result = mutate_and_test([mutation], f"{shlex.join(PYTEST)} {HEART[module]}", TIME_LIMIT)
    return module, str(result.test_outcome) == "TestOutcome.SURVIVED", result.diff or result.output


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args(given)
    record = start_record(args, ["cosmic-ray", "pytest", "hypothesis"])
    tried, left = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        enter_a_copy(folder)
        for tests in HEART.values():  # all pass as long as nothing is changed
            subprocess.run(PYTEST + tests.split(), check=True)
        mutations = drawn(args.mutants)
        with ProcessPoolExecutor(
            os.cpu_count(), initializer=enter_a_copy, initargs=(folder,)
        ) as pool:
            for module, survived, text in pool.map(survives, mutations):
                tried[module] += 1
                left[module] += survived
                print("-" * 80 + f"\n{text}" if survived else ".", end="", flush=True)
        os.chdir(ROOT)
    record["modules"] = {m: {"mutants": tried[m], "survivors": left[m]} for m in sorted(tried)}
    record["noticed"] = 1 - left.total() / tried.total()
    print(f"\n{json.dumps(record, indent=2)}")
    if args.record:
        args.record.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return record


if __name__ == "__main__":
    main()
