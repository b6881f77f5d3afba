"""The documentation names files, options and commands that exist."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("config", "kernels", "model", "server", "proto", "tests", "bench", "docs", "scripts",
           "docker", "deploy", "cmake")


def options():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([a-z_.0-9]+)` \|", page, re.MULTILINE))


class DocsTest(unittest.TestCase):
    def test_links_lead_somewhere(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
                if "://" not in target:
                    with self.subTest(page=page.name, target=target):
                        self.assertTrue((page.parent / target).exists())

    def test_named_files_exist(self):
        for page in PAGES:
            for name in re.findall(r"`([a-z_0-9]+/[a-zA-Z_0-9/.*]+)`", page.read_text("utf-8")):
                if name.split("/")[0] not in FOLDERS or "<" in name:
                    continue
                with self.subTest(page=page.name, file=name):
                    self.assertTrue(list(ROOT.glob(name.rstrip("/"))), name)

    def test_files_named_without_their_folder_exist(self):
        known = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
        pattern = r"`([a-z_0-9*]+\.(?:cpp|h|cu|py|sh))`"
        for page in PAGES:
            for name in re.findall(pattern, page.read_text("utf-8")):
                with self.subTest(page=page.name, file=name):
                    self.assertTrue(name in known or
                                    any(pathlib.PurePath(k).match(name) for k in known), name)

    def test_named_options_exist(self):
        names = options()
        self.assertGreater(len(names), 40)
        sections = {name.split(".")[0] for name in names if "." in name}
        for page in PAGES:
            for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", page.read_text("utf-8")):
                if name.split(".")[0] in sections and not name.endswith((".h", ".md", ".cpp")):
                    with self.subTest(page=page.name, option=name):
                        self.assertIn(name, names)

    def test_named_flags_exist(self):
        flags = {"--" + re.sub(r"[._]", "-", name) for name in options()}
        own = {"--context", "--concurrency", "--config", "--plan", "--svg", "--calibrate",
               "--card", "--fidelity-report"}
        for page in PAGES:
            text = page.read_text("utf-8")
            for flag in re.findall(r"longstride (?:serve|inspect)[^\n`|]*?(--[a-z-]+)", text):
                with self.subTest(page=page.name, flag=flag):
                    self.assertIn(flag, flags | own)


if __name__ == "__main__":
    unittest.main()
