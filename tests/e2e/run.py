"""Runs one test module with the Python that has the clients; exit status 77 means skipped."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / ".cache" / "test-venv" / "bin" / "python"


def main():
    python = os.environ.get("LONGSTRIDE_TEST_PYTHON", str(VENV))
    if not os.path.exists(python):
        print("skipped: scripts/test_venv.sh makes the Python environment of these tests")
        return 77
    os.chdir(pathlib.Path(__file__).parent)
    os.execv(python, [python, "-B", "-m", "unittest", "-v", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
