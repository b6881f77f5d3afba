"""Fails on an include that goes up or around the dependency chain of docs/architecture.md.

config/base -> {kernels, config} -> model -> server/engine -> server/frontend -> server/{cli,main}
server/metrics observes the engine and the front end; proto is a leaf for the gRPC adapter alone.
"""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)

# Folder -> folders whose headers it may include; a folder may always include its own. The longest
# matching prefix decides which folder a file belongs to.
ALLOWED = {
    "config/base": [],
    "config": ["config/base"],
    "kernels": ["config/base"],
    "model": ["config", "config/base", "kernels"],
    # The page size and tensor views of the kernels' plain headers are the model's vocabulary.
    "server/engine": ["config/base", "model", "kernels/plain"],
    "server/frontend": ["config", "config/base", "model", "server/engine", "kernels/plain"],
    "server/metrics": ["config/base", "model", "server/engine", "server/frontend"],
    "server/cli": ["config", "config/base", "kernels", "model", "server/engine",
                   "server/frontend", "server/metrics"],
    "server": ["config", "config/base", "model", "server/engine", "server/frontend",
               "server/metrics", "server/cli"],
}
PLAIN_KERNEL_HEADERS = {"kernels/paged_kv.h", "kernels/tensor_view.h", "kernels/kv_selection.h"}
SOURCE_ROOTS = ("config", "kernels", "model", "server")
SUFFIXES = (".h", ".cpp", ".cc", ".cu", ".cuh")

# What a .cu may include beside kernels/**: CUDA and the parts of the standard library that hold no
# code for the host.
CUDA_HEADERS = re.compile(r"^(cuda|cooperative_groups|cub/|mma\.h|nv/|math_constants|vector_types)")
DEVICE_STANDARD_HEADERS = {"cstdint", "cstddef", "cfloat", "climits", "cmath", "limits",
                           "type_traits", "utility", "algorithm", "array"}


def folder_of(path):
    """The folder of ALLOWED that a repository path belongs to, or None."""
    best = None
    for folder in ALLOWED:
        if path.startswith(folder + "/") and (best is None or len(folder) > len(best)):
            best = folder
    return best


def is_proto(include):
    return include.endswith(".pb.h") or include.startswith(("grpc", "google/protobuf", "proto/"))


def violations_of(path, text, read):
    """Messages about the includes of one file. `read` returns a repository file's text or None."""
    found = []
    own = folder_of(path)
    is_device = path.endswith((".cu", ".cuh"))
    for quote, include in INCLUDE.findall(text):
        target = folder_of(include)
        if is_proto(include):
            if not path.startswith("server/frontend/grpc"):
                found.append(f"{path}: {include}: protobuf and gRPC end in server/frontend/grpc*")
        elif include.startswith("nlohmann/"):
            if own in ("kernels", "server/engine"):
                found.append(f"{path}: {include}: JSON stays out of this folder")
        elif CUDA_HEADERS.match(include) and not path.startswith("kernels/cuda/"):
            found.append(f"{path}: {include}: CUDA stays in kernels/cuda")
        elif target is not None and target != own and target not in ALLOWED[own]:
            plain = include in PLAIN_KERNEL_HEADERS and "kernels/plain" in ALLOWED[own]
            if not plain:
                found.append(f"{path}: {include}: {own} may not include {target}")
        elif target not in (None, own, "config") and reaches_json(include, read):
            found.append(f"{path}: {include}: JSON stays out of the headers that others include")
        elif quote == '"' and "/" not in include:
            found.append(f"{path}: {include}: write includes from the repository's root")
    if is_device:
        found += device_violations(path, text, read)
    return found


def reaches_json(header, read):
    """Whether a header includes the JSON library, directly or through the repository's headers."""
    seen, queue = {header}, [header]
    while queue:
        for _, include in INCLUDE.findall(read(queue.pop()) or ""):
            if include.startswith("nlohmann/"):
                return True
            if folder_of(include) is not None and include not in seen:
                seen.add(include)
                queue.append(include)
    return False


def device_violations(path, text, read):
    """A .cu and all it reaches may include kernels/** and CUDA headers only."""
    found, seen, queue = [], {path}, [(path, text)]
    while queue:
        current, content = queue.pop()
        for _, include in INCLUDE.findall(content):
            if CUDA_HEADERS.match(include) or include in DEVICE_STANDARD_HEADERS:
                continue
            if not include.startswith("kernels/"):
                found.append(f"{path}: reaches {include} through {current}: .cu files include "
                             "kernels/** and CUDA headers only")
            elif include not in seen and read(include) is not None:
                seen.add(include)
                queue.append((include, read(include)))
    return found


def read_repository_file(path):
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def repository_sources():
    for root in SOURCE_ROOTS:
        for file in sorted((ROOT / root).rglob("*")):
            if file.suffix in SUFFIXES:
                yield file.relative_to(ROOT).as_posix()


class LayoutTest(unittest.TestCase):
    def test_every_include_points_down(self):
        found = []
        count = 0
        for path in repository_sources():
            count += 1
            found += violations_of(path, read_repository_file(path), read_repository_file)
        self.assertGreater(count, 50, "the sources were not found")
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_every_header_has_pragma_once(self):
        missing = [path for path in repository_sources()
                   if path.endswith((".h", ".cuh"))
                   and "#pragma once" not in read_repository_file(path)]
        self.assertEqual(missing, [])

    def test_no_conditional_compilation_on_cuda(self):
        pattern = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*\b(LONGSTRIDE_CUDA|LS_WITH_CUDA)\b",
                             re.MULTILINE)
        found = [path for path in repository_sources()
                 if pattern.search(read_repository_file(path))]
        self.assertEqual(found, [], "CUDA is a folder that is added or not, never an #ifdef")

    def test_the_check_notices_each_kind_of_violation(self):
        files = {"kernels/paged_kv.h": "#include <cstdint>\n",
                 "kernels/backend.h": '#include "absl/status/status.h"\n',
                 "model/model.h": "", "model/text/j.h": "#include <nlohmann/json.hpp>\n",
                 "model/text/k.h": '#include "model/text/j.h"\n', "config/strict_json.h": "", "server/engine/engine.h": "",
                 "server/frontend/http_server.h": "", "config/base/status.h": ""}
        bad = [
            ("config/base/clock.cpp", '"config/strict_json.h"'),
            ("config/strict_json.cpp", '"kernels/paged_kv.h"'),
            ("kernels/backend.cpp", '"config/strict_json.h"'),
            ("kernels/backend.cpp", '"model/model.h"'),
            ("model/model.cpp", '"server/engine/engine.h"'),
            ("server/engine/engine.cpp", '"server/frontend/http_server.h"'),
            ("server/engine/engine.cpp", '"kernels/backend.h"'),
            ("server/engine/engine.cpp", "<grpcpp/grpcpp.h>"),
            ("server/frontend/http_server.cpp", '"longstride/v1/inference.pb.h"'),
            ("server/frontend/http_server.cpp", '"kernels/backend.h"'),
            ("kernels/backend.cpp", "<nlohmann/json.hpp>"),
            ("server/engine/engine.cpp", '"model/text/j.h"'),
            ("server/engine/engine.cpp", '"model/text/k.h"'),
            ("model/model.cpp", "<cuda_runtime.h>"),
            ("kernels/cuda/a.cu", '"config/base/status.h"'),
            ("kernels/cuda/a.cu", '"kernels/backend.h"'),
            ("kernels/cuda/a.cu", "<string>"),
            ("model/model.cpp", '"model.h"'),
        ]
        for path, include in bad:
            with self.subTest(path=path, include=include):
                self.assertTrue(violations_of(path, f"#include {include}\n", files.get))
        good = [
            ("config/strict_json.cpp", '"config/base/status.h"'),
            ("kernels/backend.cpp", '"config/base/status.h"'),
            ("kernels/cuda/a.cu", '"kernels/paged_kv.h"'),
            ("kernels/cuda/a.cu", "<cuda_bf16.h>"),
            ("model/model.cpp", "<nlohmann/json.hpp>"),
            ("model/text/tokenizer.cpp", '"model/text/k.h"'),
            ("server/engine/engine.cpp", '"kernels/paged_kv.h"'),
            ("server/frontend/grpc_server.cpp", '"longstride/v1/inference.grpc.pb.h"'),
        ]
        for path, include in good:
            with self.subTest(path=path, include=include):
                self.assertEqual(violations_of(path, f"#include {include}\n", files.get), [])


if __name__ == "__main__":
    unittest.main()
