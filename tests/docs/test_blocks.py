"""How the command blocks of a page are found, changed and checked."""

import pages
import pytest
from pages import PageError, blocks, check, typed, with_settings

PAGE = """# A page

<!-- run with: trainer.max_epochs=1 -->
```bash
python ex_maest.py
```

- In a list:

  <!-- not run: a GPU -->
  ```bash
  python ex_maest.py with seed=1
  ```

```{note}
In a note:

~~~python
print(1)
~~~
```

```{eval-rst}
.. autofunction:: maest.tag
```
"""


def test_blocks_have_lines_languages_and_comments():
    one, two, three = blocks(PAGE)
    assert (one.line, one.language, one.action) == (5, "bash", "run with")
    assert one.argument == "trainer.max_epochs=1"
    assert (two.line, two.code) == (12, "python ex_maest.py with seed=1\n")
    assert (two.action, two.argument) == ("not run", "a GPU")
    assert (three.line, three.language, three.code) == (19, "python", "print(1)\n")
    lines = PAGE.splitlines()
    for block in (one, two, three):
        assert lines[block.line - 1].strip() == block.code.strip()


@pytest.mark.parametrize(
    "wrong", ["```\nls\n```", "```sh\nls\n```", "<!-- x -->\n```bash\nls\n```"]
)
def test_a_fence_that_nobody_knows_is_refused(wrong):
    with pytest.raises(PageError, match="line 1"):
        blocks(wrong)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("python ex_maest.py", "python ex_maest.py with a=1"),
        ("python ex_maest.py  # trains", "python ex_maest.py with a=1  # trains"),
        ("python ex_tl.py with \\\n    b=2", "python ex_tl.py with b=2 a=1"),
        ("cd x && python ex_tl.py | tail", "cd x && python ex_tl.py with a=1 | tail"),
        ("python ex_tl.py with x='a b;c'; ls", "python ex_tl.py with x='a b;c' a=1; ls"),
        ("maest tag my/music", "maest tag my/music"),
    ],
)
def test_settings_are_added_to_each_command_of_a_script(line, changed):
    assert with_settings(line, "a=1") == f"{changed}\n"


def test_what_is_typed_after_a_program():
    code = "srun python ex_maest.py with seed=$x \\\n   maest.arch=A & X=1 maest models\n"
    assert list(typed(code, "ex_maest.py")) == [["with", "seed=$x", "maest.arch=A"]]
    assert list(typed(code, "maest")) == [["models"]]


@pytest.mark.parametrize(
    "right",
    [
        "python ex_maest.py with maest_30s_from_passt_pretrain ckpt_path=last datamodule.…",
        "python ex_maest.py extract_embeddings with target_mtt",
        "python ex_maest.py help module",
        "python ex_tl.py sweep with target_scores_tl sweep.tokens=[c,cdt]",
        "maest models fetch discogs-maest-30s-pw-129e",
        "maest tag my/music --write --dry-run",
        "pip install maest",
    ],
)
def test_blocks_that_are_not_run_are_checked(right):
    check(right)


@pytest.mark.parametrize(
    "wrong",
    [
        "python ex_maest.py extract with target_mtt",
        "python ex_maest.py with target_mt",
        "python ex_maest.py with seeed=1",
        "torchrun --nnodes 2 \\\n ex_maest.py with trainer.devices=many",
        "maest tags my/music",
        "maest tag my/music --pages x.html",
    ],
)
def test_wrong_settings_and_options_are_found(wrong):
    with pytest.raises(PageError):
        check(wrong)


def test_bash_and_python_run_in_the_folder_of_the_page(tmp_path):
    (tmp_path / "my").mkdir()
    page = tmp_path / "page.md"
    python = "n = open('my/number').read()"
    code = f"```bash\necho 3 > my/number\n! ls ~ | grep .\n```\n```python\n{python}\n```\n"
    page.write_text(f"{code}```python\nassert int(n) == 3\n```\n")
    assert pages.run_page(page, tmp_path / "folder", tmp_path / "my") == 3
    page.write_text(f"{code}```python\nassert int(n) == 4\n```\n")
    with pytest.raises(PageError, match=r"line 9:(.|\n)*AssertionError"):
        pages.run_page(page, tmp_path / "again", tmp_path / "my")
    page.write_text("```bash\nfalse\necho not reached\n```\n")
    with pytest.raises(PageError, match="exit code 1"):
        pages.run_page(page, tmp_path / "false", tmp_path / "my")
