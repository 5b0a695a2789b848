"""Tools of other people that judge our objects: each returns its complaints per file, known false ones left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ALLOWED_DCIODVFY = re.compile(
    r"Warning - .*(ContributingEquipmentSequence.*DeviceUID\(0018,1002\)> - Attribute is not present in standard"
    r"|would be needed to build DICOMDIR|Retired Person Name form"
    r"|Laterality\(0020,0060\)> - is only permitted to be empty when actually unknown)"
)
"""IHE AIR wants the Device UID there, dicom3tools is of before that attribute; the rest is the source's own lack."""
ALLOWED_PIXELMED = re.compile(r"\(43468-8,LN,.*\) not found in context group 100")
"""PixelMed of Debian holds the CID 100 of 2019."""
PIXELMED_JARS = ("pixelmed.jar", "pixelmed_imageio.jar", "pixelmed_codec.jar")
PIXELMED_FILE_S = 10
"""A file takes 1 s on a quiet machine."""
XPATH_LIMITS = [f"-Djdk.xml.xpath{limit}=0" for limit in ("TotalOpLimit", "ExprOpLimit", "ExprGrpLimit")]
"""Modern JDKs stop PixelMed's style sheets without these."""

TREE = re.compile(r"<CONTAINER:\((126000|1130\d\d),DCM,")
"""The root of a measurement report or of a rejection note."""

Complaints = dict[Path, list[str]]


def needed(program: str, package: str) -> str:
    """Return the path of a program; skip the test where it is not installed, fail in CI."""
    path = shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/bin")
    if path is None:
        missing(f"needs {program} (Debian: {package})")
    return str(path)


def missing(reason: str) -> None:
    """Skip for want of a peer or data; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def dciodvfy(files: Iterable[Path]) -> Complaints:
    """Judge attributes and modules with dicom3tools: no error, and no warning but the one about Device UID."""
    program = needed("dciodvfy", "dicom3tools")
    return {file: _dciodvfy(program, file) for file in files}


def _dciodvfy(program: str, file: Path) -> list[str]:
    lines = _output([program, "-new", str(file)]).splitlines()
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    return [line for line in complaints if not ALLOWED_DCIODVFY.search(line)]


def dsrdump(files: Iterable[Path]) -> Complaints:
    """Judge the content tree with dcmtk."""
    program = needed("dsrdump", "dcmtk")
    return {file: _dsrdump(program, file) for file in files}


def _dsrdump(program: str, file: Path) -> list[str]:
    text = _output([program, "-Dv", "+Pl", "+Pc", "+Pt", "+Pu", str(file)])
    complaints = [line for line in text.splitlines() if line.startswith(("E:", "F:"))]
    return complaints if TREE.search(text) else [*complaints, "no content tree was dumped"]


def dcmpschk(files: Iterable[Path]) -> Complaints:
    """Judge presentation states with dcmtk, whose 3.6.7 wants a patient name, and one in ASCII."""
    program = needed("dcmpschk", "dcmtk")
    return {file: _dcmpschk(program, file) for file in files}


def _dcmpschk(program: str, file: Path) -> list[str]:
    lines = _output([program, str(file)]).splitlines()
    complaints = [line for line in lines if line.startswith(("E:", "F:"))]
    return complaints if "W: Test passed." in lines else [*complaints, "the test was not passed"]


def pixelmed(files: Sequence[Path]) -> Complaints:
    """Judge the templates with PixelMed's DicomSRValidator (the one of the IHE Connectathon), all files in one JVM."""
    java, _ = needed("java", "default-jdk-headless"), needed("javac", "default-jdk-headless")
    folder = Path(os.environ.get("PIXELMED_JARS", "/usr/share/java"))
    if not (folder / PIXELMED_JARS[0]).exists():
        missing("needs PixelMed (Debian: libpixelmed-java)")
    classes = ":".join(str(folder / jar) for jar in PIXELMED_JARS)
    harness = Path(__file__).with_name("SrJudge.java")
    command = [java, "-Xmx2g", *XPATH_LIMITS, "-cp", classes, str(harness), *map(str, files)]
    text = _output(command, timeout_s=240 + PIXELMED_FILE_S * len(files))
    found: Complaints = {file: ["was not judged"] for file in files}
    for part in text.split("== ")[1:]:
        name, _, verdict = part.partition("\n")
        found[Path(name)] = _pixelmed(verdict)
    return found


def _pixelmed(verdict: str) -> list[str]:
    errors = [line for line in verdict.splitlines() if "Error" in line and not ALLOWED_PIXELMED.search(line)]
    is_known = "Found Root Template TID_1500" in verdict or "Found Root Template TID_2010" in verdict
    is_whole = is_known and "IOD validation complete" in verdict
    return errors if is_whole else [*errors, "the template was not recognised"]


def _output(command: list[str], timeout_s: float = 240) -> str:
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")
