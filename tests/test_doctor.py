"""The doctor's findings, on machines made up for the purpose."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from threadpoolctl import threadpool_info

from minicenternet import doctor, threads
from minicenternet.backend import try_gpu
from minicenternet.doctor import Driver, Finding

H200 = Driver((12, 4), "NVIDIA H200")


@pytest.fixture
def fresh_threads():
    """thread_count remembers its answer; here it is to look again, and afterwards too."""
    threads.thread_count.cache_clear()
    yield
    threads.thread_count.cache_clear()


def test_this_machine_is_usable_and_the_report_says_why(tmp_path):
    findings = doctor.examine(tmp_path)
    assert [finding for finding in findings if finding.verdict == "problem"] == []
    assert doctor.usable(findings)
    text = doctor.report(findings)
    assert text.splitlines()[-1] == "minicenternet can be used here"
    assert f"numpy          {version('numpy')}" in text
    values = {finding.what: finding.value for finding in findings}
    assert {"Python", "BLAS", "threads", "GPU", "memory", "shared memory", "disk", "writing"} <= set(values)
    assert str(tmp_path) in values["disk"]
    assert values["threads"].startswith(f"{threads.thread_count()}, ")


def test_the_report_is_narrow_and_leaves_commands_whole():
    command = "pip uninstall -y " + "very-long-name " * 10
    findings = [
        Finding("BLAS", "x", "note", "word " * 60, command),
        Finding("disk", "full", "problem", "free some space"),
        Finding("writing", "no", "problem"),
    ]
    lines = doctor.report(findings).splitlines()
    assert max(len(line) for line in lines if command not in line) <= 98
    assert sum(command in line for line in lines) == 1
    assert " ".join(lines).count("word") == 60 and "free some space" in lines[-4]
    assert lines[-1] == "2 problems to solve before minicenternet can be used here"
    assert not doctor.usable(findings) and doctor.usable(findings[:1])


# ---- libraries -------------------------------------------------------------------------------------------------------


def test_missing_packages_come_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: name not in ("tyro", "pycocotools"))
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    found = {finding.what: finding for finding in doctor.packages()}
    assert (found["tyro"].verdict, found["tyro"].command) == ("problem", "pip install tyro")
    assert (found["pycocotools"].verdict, found["pycocotools"].command) == ("note", "pip install pycocotools")
    assert found["numpy"] == Finding("numpy", "1.0")
    assert len(found) == 8


def library(**changes) -> list[dict]:
    return [{"user_api": "blas", "internal_api": "openblas", "version": "0.3.31", "architecture": "Haswell", **changes}]


def test_blas_is_named_with_its_core(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(doctor, "threadpool_info", library)
    assert doctor.blas() == Finding("BLAS", "openblas 0.3.31, code for Haswell")


def test_a_blas_held_to_an_older_core_is_noticed(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setattr(doctor, "threadpool_info", library)
    monkeypatch.setattr(doctor, "_own_core", lambda: "SkylakeX")
    found = doctor.blas()
    assert found.verdict == "note" and found.command == "unset OPENBLAS_CORETYPE"
    assert "OPENBLAS_CORETYPE=Haswell" in found.advice and "SkylakeX" in found.advice
    for own in ("Haswell", ""):  # the variable changes nothing, or nobody knows
        monkeypatch.setattr(doctor, "_own_core", lambda own=own: own)
        assert doctor.blas().verdict == "ok"


def test_the_own_core_is_asked_for_without_the_variable(monkeypatch):
    own = [library.get("architecture", "") for library in threadpool_info() if library["user_api"] == "blas"]
    if "OPENBLAS_CORETYPE" in os.environ or not own or not own[0]:
        pytest.skip("NumPy's BLAS here has no cores, or is held to one already")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    assert doctor._own_core() == own[0]


def test_a_blas_that_cannot_be_asked_is_named_by_numpy(monkeypatch):
    monkeypatch.setattr(doctor, "threadpool_info", lambda: [{"user_api": "openmp"}])
    found = doctor.blas()
    assert found.verdict == "note" and found.value


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cores, allowed, quota, wanted, value",
    [
        (8, 8, 99, None, "8, one for each CPU"),
        (8, 3, 99, None, "3, the CPUs this process may use, of 8"),
        (8, 8, 2, None, "2, this container's share of 8 CPUs"),
        (8, 8, 99, "5", "5, set by MINICENTERNET_THREADS"),
    ],
)
def test_the_number_of_threads_is_explained(monkeypatch, fresh_threads, cores, allowed, quota, wanted, value):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MINICENTERNET_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(threads, "_container_quota", lambda: quota)
    if wanted:
        monkeypatch.setenv("MINICENTERNET_THREADS", wanted)
    assert doctor.threads() == Finding("threads", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.threads().verdict == "note" and "MINICENTERNET_THREADS=N" in doctor.threads().advice


def test_a_senseless_number_of_threads_is_a_problem(monkeypatch, fresh_threads):
    monkeypatch.setenv("MINICENTERNET_THREADS", "many")
    found = doctor.threads()
    assert (found.value, found.verdict) == ("many", "problem") and "positive integer" in found.advice


# ---- the GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "driver, wheels, verdict, says, command",
    [
        (None, [], "ok", "no NVIDIA driver", ""),
        (None, ["cupy-cuda12x"], "ok", "cupy-cuda12x is installed but of no use", ""),
        (Driver((11, 4), "T4"), [], "note", "CUDA 12 or newer", ""),
        (Driver((12, 4), ""), [], "note", "shows no GPU", ""),
        (H200, [], "note", "driver for CUDA 12.4", 'pip install "cupy-cuda12x[ctk]"'),
        (Driver((13, 0), "B200"), [], "note", "not installed", 'pip install "cupy-cuda13x[ctk]"'),
        (Driver((14, 1), "X"), [], "note", "not installed", 'pip install "cupy-cuda13x[ctk]"'),
        (H200, ["cupy-cuda13x"], "note", "too new for the driver", 'pip install "cupy-cuda12x[ctk]"'),
        (H200, ["cupy", "cupy-cuda12x"], "note", "overwrite each other", "pip uninstall -y cupy cupy-cuda12x && "),
        (H200, ["cupy-cuda12x"], "ok", "NVIDIA H200, driver for CUDA 12.4, cupy-cuda12x", ""),
        (Driver((13, 0), "B200"), ["cupy-cuda12x"], "ok", "cupy-cuda12x", ""),  # drivers run older programs
    ],
)
def test_driver_and_cupy_must_fit(monkeypatch, driver, wheels, verdict, says, command):
    monkeypatch.setattr(doctor, "try_gpu", lambda number: "NVIDIA H200")
    found = doctor.gpu(driver, wheels)
    assert found.verdict == verdict and says in found.value + found.advice
    assert command in found.command and bool(command) == bool(found.command)


def test_a_cupy_that_does_not_work_is_noticed(monkeypatch):
    def fail(number):
        raise RuntimeError("CUDA headers not found\nlong explanation")

    monkeypatch.setattr(doctor, "try_gpu", fail)
    found = doctor.gpu(H200, ["cupy-cuda12x"])
    assert found.verdict == "note" and "(CUDA headers not found)" in found.advice
    assert found.command == 'pip uninstall -y cupy-cuda12x && pip install "cupy-cuda12x[ctk]"'


def test_the_driver_is_asked_for_its_version_and_gpu(monkeypatch):
    def version_number(number):
        number._obj.value = 12040
        return 0

    def name(text, length, device):
        text.value = b"NVIDIA H200"
        return 0

    driver = SimpleNamespace(
        cuDriverGetVersion=version_number,
        cuInit=lambda flags: 0,
        cuDeviceGet=lambda device, number: 0,
        cuDeviceGetName=name,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert doctor.find_driver() == H200
    driver.cuDeviceGet = lambda device, number: 100
    assert doctor.find_driver() == Driver((12, 4), "")


def test_without_a_driver_there_is_none(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert doctor.find_driver() is None


def test_every_package_that_brings_a_cupy_is_found(monkeypatch):
    names = ["cupy-cuda12x", "cupy", "cupyx-tools", "numpy", "cupy-rocm-5-0", None]
    found = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(doctor, "distributions", lambda: found)
    assert doctor.cupy_wheels() == ["cupy", "cupy-cuda12x", "cupy-rocm-5-0"]


def test_trying_the_gpu_needs_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError):
        try_gpu()


# ---- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free, verdict", [(None, "ok"), (64e9, "ok"), (2e9, "note"), (0.1e9, "problem")])
def test_memory(free, verdict):
    assert doctor.memory(free).verdict == verdict


def test_free_memory_is_at_most_what_the_machine_has():
    free = doctor.free_memory()
    if not hasattr(os, "sysconf") or free is None:
        pytest.skip("this system does not tell")
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("free, verdict", [(90e9, "ok"), (0.5e9, "note"), (0.01e9, "problem")])
def test_disk(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.disk(tmp_path).verdict == verdict


@pytest.mark.parametrize("free, verdict", [(8e9, "ok"), (64e6, "note")])
def test_shared_memory(monkeypatch, free, verdict):
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.shared_memory().verdict == verdict
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: False)
    assert doctor.shared_memory().verdict == "ok"


def test_a_folder_that_is_not_there_is_a_problem(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert doctor.disk(nowhere).verdict == doctor.writing(nowhere).verdict == "problem"
    assert doctor.writing(tmp_path).verdict == "ok"
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
