"""How the results of machines are evaluated, without a machine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.vm.__main__ import surprises
from tests.vm.errors import VmError
from tests.vm.features import FEATURES, Finding
from tests.vm.kernels import KERNELS, Kernel, Parts
from tests.vm.machine import Found, Job, Outcome, fingerprint, read_found
from tests.vm.root import Recipe
from tests.vm.suite import ABOUT_THE_SIDECAR, LEFT_OUT, TESTED
from tests.vm.table import document

TESTS = Path(__file__).parents[1] / "kernel"
ERRNO = "errno of an empty pool"
OLD = Kernel("5.10", "bullseye", frozenset({ERRNO}))
NEW = Kernel("6.1", "bookworm")
REPORT = b"""<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message=""/></testcase>
<testcase classname="a" name="broken"><error message=""/></testcase>
<testcase classname="a" name="left"><skipped message="lacks x"/></testcase>
</testsuite></testsuites>"""


THREE = Outcome(3, (), {})


def found(*lacks: str, tests: Outcome = THREE) -> Found:
    """Return the results of a machine with these gaps."""
    return Found({feature.name: Finding(feature.name not in lacks, "so") for feature in FEATURES}, tests, 1.0)


def write_disk(disk: Path, **files: bytes) -> Path:
    """Write files as a machine does, on a disk that is larger than they are."""
    with tarfile.open(disk, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name.replace('_', '.')}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with disk.open("ab") as file:
        file.write(bytes(4096))
    return disk


def test_expected_gaps_are_no_surprise() -> None:
    """A kernel that lacks only known features, and passes its tests, is as expected."""
    assert surprises(OLD, found(ERRNO)) == []
    assert surprises(NEW, found()) == []


def test_other_gaps_are_surprises() -> None:
    """A kernel that lacks more than it is known to, or less, fails the run."""
    assert surprises(NEW, found(ERRNO)) == [f"lacks '{ERRNO}': so"]
    assert surprises(OLD, found()) == [f"is said to lack '{ERRNO}', and does not"]


def test_failed_and_missing_tests_are_surprises() -> None:
    """A failed test fails the run, and so does a run without tests."""
    assert surprises(NEW, found(tests=Outcome(2, ("a::bad",), {}))) == ["failed: a::bad"]
    assert surprises(NEW, found(tests=Outcome(0, (), {}))) == ["ran no test"]


def test_skips_need_an_expected_gap() -> None:
    """A test may be skipped only for a feature that the kernel is known to lack."""
    skipped = Outcome(2, (), {"a::left": f"lacks {ERRNO}"})
    assert surprises(OLD, found(ERRNO, tests=skipped)) == []
    assert surprises(NEW, found(tests=skipped)) == [f"skipped: a::left, 'lacks {ERRNO}'"]


def test_results_are_of_one_program_and_its_tests(tmp_path: Path) -> None:
    """Earlier results are valid only for the same files and arguments; other files of pip do not matter."""
    (tmp_path / "site/clb.dist-info").mkdir(parents=True)
    (tmp_path / "site/clb.py").write_text("1")
    job = Job(tmp_path / "root", tmp_path, "tests/kernel", 1.0)
    before = fingerprint(job)
    (tmp_path / "site/clb.dist-info/direct_url.json").write_text("where it was built")
    assert fingerprint(job) == before
    assert fingerprint(job._replace(append="tests")) != before
    (tmp_path / "site/clb.py").write_text("2")
    assert fingerprint(job) != before


def test_parts_are_of_one_choice_of_modules(tmp_path: Path) -> None:
    """Parts for other or unknown modules are fetched again."""
    parts = Parts(tmp_path)
    assert not parts.are_fresh(["ext4"])
    (tmp_path / "choice").write_text("ext4 overlay")
    assert parts.are_fresh(["ext4", "overlay"])
    assert not parts.are_fresh(["ext4"])


def test_a_root_is_of_one_recipe() -> None:
    """Another package, of Debian or of Python, makes another image."""
    recipe = Recipe(("python3",), ("rich",))
    names = {recipe.name, recipe._replace(packages=("redis",)).name, recipe._replace(requirements=()).name}
    assert len(names) == 3
    assert recipe.name == Recipe(("python3",), ("rich",)).name


def test_results_are_read_from_the_disk(tmp_path: Path) -> None:
    """Features and the outcome of each test come back from the disk that the machine wrote."""
    disk = write_disk(tmp_path / "disk", features_json=b'{"x": [false, "EPERM"]}', tests_xml=REPORT)
    read = read_found(disk, tmp_path / "console", 2.0)
    outcome = Outcome(1, ("a::bad", "a::broken"), {"a::left": "lacks x"})
    assert read == Found({"x": Finding(has=False, detail="EPERM")}, outcome, 2.0)


@pytest.mark.parametrize("files", [{}, {"features_json": b"{}"}, {"features_json": b"{}", "tests_xml": b"<tests"}])
def test_machine_that_did_not_finish_is_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Without complete results there is an error that names the console."""
    with pytest.raises(VmError, match=r"without results.*console"):
        read_found(write_disk(tmp_path / "disk", **files), tmp_path / "console", 2.0)


def test_empty_disk_is_an_error(tmp_path: Path) -> None:
    """An empty disk is no result."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(65536))
    with pytest.raises(VmError, match="without results"):
        read_found(disk, tmp_path / "console", 2.0)


def test_document_shows_every_feature_of_every_kernel() -> None:
    """The table has a column for each kernel and a row for each feature, with the reason for missing ones."""
    text = document({OLD: "5.10.1-1", NEW: "6.1.1-1"}, {OLD: found(ERRNO), NEW: found()})
    lines = text.splitlines()
    assert "|  | 5.10 | 6.1 |" in lines
    assert f"| {ERRNO} | lacks: so | yes: so |" in lines
    assert "| tests | 3 passed | 3 passed |" in lines
    assert all(f"- **{feature.name}**: " in text for feature in FEATURES)
    assert max(map(len, lines)) <= 120


def test_names_that_are_kept_by_hand_exist() -> None:
    """Known gaps of kernels are features, and excluded tests exist."""
    assert {name for kernel in KERNELS for name in kernel.lacks} <= {feature.name for feature in FEATURES}
    for name in LEFT_OUT:
        path, _, test = name.partition("::")
        assert f"def {test}(" in (TESTS / path).read_text() if test else (TESTS / path).exists(), name


def test_every_file_is_tested_or_left_out_on_purpose() -> None:
    """Every new file of kernel tests has to be included in the machines or excluded explicitly."""
    files = {path.name for path in TESTS.iterdir() if path.name.startswith("test_") or path.name == "transparency"}
    assert sorted([*TESTED, *ABOUT_THE_SIDECAR, *(name for name in LEFT_OUT if "::" not in name)]) == sorted(files)
