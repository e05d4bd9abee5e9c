"""Splitting: what a chunk may and may not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.vectors.chunks import BlockKind, scan, split

_PIECES = st.sampled_from(
    ("# One\n", "## Two ##\n", "\n", "\n\n", "```py\ncode()\n\n```\n", "~~~\n", "- item one\n", "word " * 9, "无" * 30)
) | st.sampled_from(
    (
        "。",
        "Sentence one. ",
        "What? ",
        "，",
        "长长的句子。",
        "\r\n",
        "\t",
        "x" * 70,
        "#tag ",
        "é",
        "\u2028",
        "\x1c",
        "...",
    )
)
_MARKDOWN = st.lists(_PIECES, max_size=40).map("".join) | st.text(max_size=400)


@given(_MARKDOWN, st.integers(40, 200), st.integers(0, 10))
def test_every_character_is_in_a_chunk(text: str, max_chars: int, overlap: int) -> None:
    """For any text: spans are exact, short enough, in order, never blank, and leave out white space only."""
    chunks = split(text, max_chars=max_chars, overlap=overlap)
    covered: set[int] = set()
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text.strip()
        assert len(chunk.text) <= max_chars
        covered.update(range(chunk.start, chunk.end))
    assert all(text[at].isspace() for at in range(len(text)) if at not in covered)
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})
    assert [c.end for c in chunks] == sorted({c.end for c in chunks})


@given(_MARKDOWN)
def test_blocks_leave_out_white_space_only(text: str) -> None:
    """Blocks are in order, apart, and cover all that is not white space."""
    at = 0
    for block in scan(text):
        assert at <= block.start < block.end
        assert not text[at : block.start].strip()
        at = block.end
    assert not text[at:].strip()


@given(st.lists(st.sampled_from(["alpha", "be", "gamma,", "delta.", "epsilon\n"]), min_size=60, max_size=150))
def test_words_are_never_cut(words: list[str]) -> None:
    """Where there is white space to cut at, chunks start and end with whole words."""
    text = " ".join(words)
    known = set(text.split())
    for chunk in split(text, max_chars=60, overlap=12):
        assert set(chunk.text.split()) <= known


@given(st.lists(st.integers(3, 30), min_size=10, max_size=40))
def test_chinese_sentences_are_never_cut(lengths: list[int]) -> None:
    """Sentences that fit into a chunk stay whole."""
    text = "".join("甲" * length + "。" for length in lengths)
    for chunk in split(text, max_chars=60, overlap=0):
        assert chunk.text.endswith("。")
        assert chunk.start == 0 or text[chunk.start - 1] == "。"


def test_a_chunk_never_spans_two_headings() -> None:
    """Small sections stay apart, each with the headings above it."""
    chunks = split("intro\n\n# A\n\none\n\n## B\n\ntwo\n\n# C\nthree\n")
    assert [(c.heading_path, c.text) for c in chunks] == [
        ((), "intro"),
        (("A",), "# A\n\none"),
        (("A", "B"), "## B\n\ntwo"),
        (("C",), "# C\nthree"),
    ]


def test_a_heading_without_text_opens_the_next_section() -> None:
    """No chunk is only a heading, unless nothing follows."""
    chunks = split("# A\n## B\ntext\n# End\n")
    assert [(c.heading_path, c.text) for c in chunks] == [(("A", "B"), "# A\n## B\ntext"), (("End",), "# End")]


@pytest.mark.parametrize(
    ("line", "title"), [("# A", "A"), ("###", ""), ("## A ##  ", "A"), ("# C#", "C#"), ("#  # x", "# x"), ("# #", "")]
)
def test_heading_marks_are_not_its_title(line: str, title: str) -> None:
    """Closing marks go, marks inside stay."""
    (block,) = scan(line)
    assert (block.kind, block.title) == (BlockKind.HEADING, title)


@pytest.mark.parametrize("text", ["#hashtag", "####### seven", "text # not", "    # code"])
def test_what_only_looks_like_a_heading(text: str) -> None:
    """As in CommonMark."""
    assert [block.kind for block in scan(text)] == [BlockKind.PARAGRAPH]


def test_code_that_fits_is_kept_whole() -> None:
    """A fence is moved to the next chunk rather than cut, and its comments are no headings."""
    code = "```sh\n# not a heading\n\nrun --all\n```"
    text = f"# Title\n\n{'Some words here. ' * 4}\n\n{code}\n\nAfter."
    chunks = split(text, max_chars=100, overlap=20)
    assert any(code in chunk.text for chunk in chunks)
    assert {chunk.heading_path for chunk in chunks} == {("Title",)}


def test_code_that_does_not_fit_is_cut_between_lines() -> None:
    """Long code is torn at line ends."""
    lines = [f"line_{number}()" for number in range(40)]
    chunks = split("```\n" + "\n".join(lines) + "\n```\n", max_chars=100, overlap=0)
    assert {line for chunk in chunks for line in chunk.text.splitlines()} == {*lines, "```"}


def test_a_statement_astride_a_cut_is_repeated() -> None:
    """The chunk after a cut inside a paragraph begins with the last sentence before it."""
    text = " ".join(f"This is sentence number {number}." for number in range(12))
    first, second, *_ = split(text, max_chars=100, overlap=25)
    assert second.start < first.end
    assert second.text.startswith("This is") or not text[second.start - 1].isalnum()


def test_an_unclosed_fence_runs_to_the_end() -> None:
    """As in CommonMark."""
    assert [b.kind for b in scan("```\ncode\n\n# still code")] == [BlockKind.FENCE]


@pytest.mark.parametrize(("max_chars", "overlap"), [(10, 0), (5000, 0), (100, 26), (100, -1)])
def test_sizes_out_of_range_are_refused(max_chars: int, overlap: int) -> None:
    """The limits are named."""
    with pytest.raises(ValueError, match="expected"):
        split("text", max_chars=max_chars, overlap=overlap)
