"""Texts: CSV files and folders as people have them, and the published sets' loaders."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from kshot import data
from kshot.data import corpora
from kshot.data.text import decode, read_texts


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"a, b ""c""",x\nd,y\n',
        'label;text\nx;"a, b ""c"""\ny;d\n',
        '\ufeffid\ttext\tlabel\r\n1\t"a, b ""c"""\tx\r\n\r\n2\td\ty\r\n',
        'sep=;\rtext;label\r"a, b ""c""";x\rd;y\r',
    ],
)
def test_tables_of_all_dialects(content: str, tmp_path: Path) -> None:
    found = read_texts(written(tmp_path / "a.csv", content), "text", "label")
    assert found.pairs == [('a, b "c"', "x"), ("d", "y")]
    assert found.notes == []


def test_cells_keep_what_numbers_would_lose(tmp_path: Path) -> None:
    """Decimal commas, hashes and Unicode's own line ends are parts of texts."""
    content = "text;label\n1,5;x\n#one;y\na\u2028b\x0bc;x\n1.500;y\n999;x\n"
    assert read_texts(written(tmp_path / "a.csv", content), "text", "label").texts == [
        "1,5", "#one", "a\u2028b\x0bc", "1.500", "999"
    ]  # fmt: skip


def test_lines_are_those_where_a_row_begins(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\n\nthree,y\n')
    assert read_texts(path, "text", "label").where == ["line 2", "line 5"]


def test_a_text_of_a_million_characters(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = written(tmp_path / "a.csv", f'text,label\n"{"word " * 200_000}",x\n')
    assert len(read_texts(path, "text", "label").texts[0]) == 999_999
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        ("text,label\na,x\n", ("mail", "label"), "no column 'mail' (--text, text=); there are text, label"),
        ("text,label\na,x\n", ("text", "class"), "no column 'class' (--label, label=); there are text, label"),
        ("text,label\na,x\n", (None, "label"), "has the columns text, label: say which of them"),
        ("text,label\na,x\n", ("text", "text"), "'text' is named for the texts and for the labels"),
        ("text,text\na,x\n", ("text", None), "2 columns are called 'text'"),
        ("text,label\na,x\n,y\n\nb,x\n  ,y\n", ("text", "label"), "2 entries without a text in 'text': line 3, line 6"),
        ("text,label\na,x\nb,\n", ("text", "label"), "1 entry without a label in 'label': line 3"),
        ("text,label\na, and b,x\n", ("text", "label"), "line 2: 3 cells but 2 columns (text, label, line 1): put"),
        ('text,label\na,x\n"b,x\nc,y\n', ("text", "label"), "line 3: unexpected end of data; look for a quotation"),
        ("text,label\n", ("text", "label"), "has a header (text, label) and no rows"),
        ("", ("text", "label"), "is empty: write a header"),
        (b"text,label\na\0,x\n", ("text", "label"), "zero bytes"),
        (f"{'w' * 999},label\na,x\n", ("text", "label"), "there are wwwwwwww"),
    ],
)
def test_mistakes_in_tables(
    content: str | bytes, columns: tuple[str | None, str | None], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a\.csv") as error:
        read_texts(written(tmp_path / "a.csv", content), *columns)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_one_column_needs_no_name_and_empty_texts_may_stay(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n,x\na,y\n")
    assert read_texts(path, "text", empty=True).texts == ["", "a"]
    assert read_texts(written(tmp_path / "b.csv", "mail\na\nb\n")).pairs == [("a", ""), ("b", "")]


KOREAN, GERMAN = "배송은 언제 오나요", "Größe und Maß, naïve Übung"


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        (KOREAN, "utf-8", ""),
        (KOREAN, "utf-8-sig", ""),
        (KOREAN, "utf-16", ""),
        (KOREAN, "cp949", "cp949"),
        (GERMAN, "cp1252", "cp1252"),
    ],
)
def test_encodings(text: str, encoding: str, guess: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f'text,label\n"{text}",x\n'.encode(encoding))
    found = read_texts(path, "text", "label")
    assert found.texts == [text]
    assert [guess in note for note in found.notes] == ([True] if guess else [])
    assert read_texts(path, "text", "label", encoding=encoding).pairs == [(text, "x")]


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.txt is not text in utf-8 or cp949 or cp1252"):
        decode(b"\xff\x81\x00\x90", "x.txt")
    with pytest.raises(ValueError, match="there is no encoding 'utf-9'"):
        decode(b"a", "x.txt", "utf-9")
    with pytest.raises(ValueError, match="is not text in ascii"):
        decode("é".encode(), "x.txt", "ascii")


def test_folders_and_zips(tmp_path: Path) -> None:
    root = tmp_path / "mails"
    written(root / "spam" / "1.txt", "win\n")
    written(root / "spam" / "2.TXT", KOREAN.encode("cp949"))
    written(root / "work" / "a.txt", "meeting")
    written(root / "work" / "a.pdf", "x")
    written(root / "loose.txt", "who knows")
    with zipfile.ZipFile(tmp_path / "mails.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(root))
    for path in (root, tmp_path / "mails.zip"):
        found = read_texts(path)
        assert dict(zip(found.where, found.pairs, strict=True)) == {
            "loose.txt": ("who knows", ""),
            "spam/1.txt": ("win", "spam"),
            "spam/2.TXT": (KOREAN, "spam"),
            "work/a.txt": ("meeting", "work"),
        }
        assert "read as cp949 (Korean): spam/2.TXT" in found.notes[0]
        assert found.notes[1] == "1 file not read, not .txt: .pdf: 1 in 'work'"
    with pytest.raises(ValueError, match="columns are of CSV files"):
        read_texts(root, "text")
    written(root / "work" / "b.txt", " \n")
    with pytest.raises(ValueError, match=r"1 entry without a text: work/b\.txt"):
        read_texts(root)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"has no \.txt file: put texts into one folder per class"):
        read_texts(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "nowhere.csv", "text")


# ------------------------------------------------------------------------------------------------------ published sets


@pytest.fixture
def banking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set in the place of banking77, and a server for it."""
    for split, size in (("train", 6), ("test", 4)):
        rows = "".join(f'"question {k}, please",intent {k % 2}\n' for k in range(size))
        written(tmp_path / "server" / f"{split}.csv", f"text,category\n{rows}")
    files = {
        f"{split}.csv": (
            (tmp_path / "server" / f"{split}.csv").as_uri(),
            hashlib.sha256((tmp_path / "server" / f"{split}.csv").read_bytes()).hexdigest(),
        )
        for split in ("train", "test")
    }
    row = corpora.CORPORA["banking77"]._replace(files=lambda language: files, sizes={"train": (6, 2), "test": (4, 2)})
    monkeypatch.setitem(corpora.CORPORA, "banking77", row)
    return tmp_path / "data"


def test_a_set_is_fetched_checked_and_read(banking: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kshot data fetch banking77"):
        data.load_texts("banking77", data_root=banking)
    assert not data.check("banking77", banking).ok
    assert len(data.fetch_dataset("banking77", banking)) == 2
    report = data.check("banking77", banking)
    assert report.ok
    assert report.lines == ("train: 2 classes, 6 texts", "test: 2 classes, 4 texts")
    assert data.load_texts("banking77", "test", data_root=banking).pairs[1] == ("question 1, please", "intent 1")
    path = banking / "banking77" / "train.csv"
    path.write_text(path.read_text().rsplit("\n", 2)[0])
    with pytest.raises(data.DataError, match="train has 5 texts of 2 classes, expected 6 of 2"):
        data.load_texts("banking77", data_root=banking)
    path.write_text("nothing")
    with pytest.raises(data.DataError, match=r"is damaged: .* no column 'text'"):
        data.load_texts("banking77", data_root=banking)


def test_other_names_splits_and_languages() -> None:
    with pytest.raises(ValueError, match="unknown set of texts 'bank'; there are: banking77"):
        data.load_texts("bank")
    with pytest.raises(ValueError, match="banking77 has no split 'val'; there are: train, test"):
        data.load_texts("banking77", "val")
    with pytest.raises(ValueError, match="sib200 has no language 'korean': did you mean kon_Latn, kor_Hang"):
        data.load_texts("sib200", language="korean")
    with pytest.raises(ValueError, match="banking77 is a set of texts and not of images"):
        data.load("banking77")
    with pytest.raises(ValueError, match="did you mean banking77"):
        data.load("banking")


def test_every_file_has_an_address_and_a_digest() -> None:
    for name, row in corpora.CORPORA.items():
        for language in data.languages(name):
            for file, (url, digest) in row.files(language).items():
                assert url.startswith("https://raw.githubusercontent.com/")
                assert len(digest) == 64, (name, file)
    assert set(corpora.LANGUAGES) <= set(data.languages("sib200"))
    assert len({own for language in data.languages("sib200") for own in corpora._digests()[language].values()}) == 615


def test_clinc_and_sib(tmp_path: Path) -> None:
    rows = {"train": [["a ", "x"]] * 15000, "test": [], "oos_test": [["q", "oos"]] * 1000}
    rows["train"] = [[f"t{k}", f"c{k % 150}"] for k in range(15000)]
    written(tmp_path / "clinc150" / "data_full.json", json.dumps(rows))
    assert data.load_texts("clinc150", "train", data_root=tmp_path).pairs[151] == ("t151", "c1")
    assert set(data.load_texts("clinc150", "test-oos", data_root=tmp_path).labels) == {"oos"}
    with pytest.raises(data.DataError, match="val"):
        data.load_texts("clinc150", "val", data_root=tmp_path)
    for split, size in (("train", 701), ("dev", 99), ("test", 204)):
        lines = "".join(f'{k}\ttopic {k % 7}\t"""text"" {split} {k}"\n' for k in range(size))
        written(tmp_path / "sib200" / "kor_Hang" / f"{split}.tsv", f"index_id\tcategory\ttext\n{lines}")
    found = data.load_texts("sib200", "val", language="kor_Hang", data_root=tmp_path)
    assert found.pairs[8] == ('"text" dev 8', "topic 1")
