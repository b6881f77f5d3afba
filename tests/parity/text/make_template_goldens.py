#!/usr/bin/env python3
"""Renders chat templates with jinja2, as `transformers` sets it up, for chat_template_parity_test.cpp.

    python tests/parity/text/make_template_goldens.py [--templates DIR] [--output FILE]

Every template in DIR (default: data/templates) is rendered with every context below; so is every
expression of data/templates/expressions.txt, one template a line. What raises an exception is recorded
as an error. strftime_now sees a fixed time.
"""

import argparse
import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

DATA = pathlib.Path(__file__).resolve().parent / "data"
NOW = datetime.datetime(2024, 7, 26, 13, 5, 9, tzinfo=datetime.timezone.utc)

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather\nof a place, in <b>Celsius</b> & \"more\".",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "City, e.g. Zürich"},
        "days": {"type": "integer", "minimum": 0, "maximum": 7, "default": 1},
        "units": {"type": "string", "enum": ["C", "F"]},
        "options": {"type": "object", "properties": {"wind": {"type": "boolean"},
                                                     "levels": {"type": "array", "items": {"type": "number"}}}},
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["place"]}, "return": {"type": "object", "description": "the weather"}}}
CLOCK = {"type": "function", "function": {"name": "now", "description": "The time.",
                                          "parameters": {"type": "object", "properties": {}}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, call_id="abc123XYZ"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "You are terse.\n"}
ARGUMENTS = {"place": "Zürich \"old\" town", "days": 2, "ratio": 0.5, "big": 1e20, "ok": True, "none": None,
             "options": {"wind": False, "levels": [1, 2.25, -3]}, "empty": {}, "list": []}
RESULT = {"role": "tool", "content": "{\"temp\": 21.5}", "tool_call_id": "abc123XYZ", "name": "get_weather"}

CONTEXTS = {
    "user": {"messages": [user("Hello!")], "add_generation_prompt": True},
    "no_prompt": {"messages": [user("  spaced \n"), assistant("  answer \n")], "add_generation_prompt": False},
    "system": {"messages": [SYSTEM, user("Hi"), assistant("Hello."), user("Bye\n\n")],
               "add_generation_prompt": True},
    "unicode": {"messages": [user("Grüße, 世界! 🤖 <|im_start|>system\n</s> [INST] {{ 7*7 }} {% raw %}")],
                "add_generation_prompt": True},
    "empty": {"messages": [SYSTEM, user("")], "add_generation_prompt": True},
    "thinking": {"messages": [user("1+1?"), assistant("<think>\nsum\n</think>\n\n2"), user("2+2?"),
                              assistant("4", reasoning_content="easy\nsum"), user("3+3?")],
                 "add_generation_prompt": True},
    "no_thinking": {"messages": [user("1+1?")], "add_generation_prompt": True, "enable_thinking": False,
                    "thinking": False, "reasoning_effort": "low"},
    "tools": {"messages": [SYSTEM, user("Weather?")], "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "tools_no_system": {"messages": [user("Weather?")], "tools": [WEATHER], "add_generation_prompt": True},
    "tool_call": {"messages": [user("Weather?"), assistant("", tool_calls=[call("get_weather", ARGUMENTS)]), RESULT,
                               assistant("21.5 degrees"), user("Thanks")],
                  "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "tool_call_text_arguments": {
        "messages": [user("Weather?"), assistant("Let me see.", tool_calls=[
            call("get_weather", json.dumps(ARGUMENTS))]), RESULT],
        "tools": [WEATHER], "add_generation_prompt": True},
    "two_calls": {"messages": [SYSTEM, user("Weather and time?"), assistant(None, tool_calls=[
        call("get_weather", {"place": "Bern"}), call("now", {}, "def456UVW")]), RESULT,
        {"role": "tool", "content": "12:00", "tool_call_id": "def456UVW", "name": "now"}],
        "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "thinking_calls": {"messages": [user("Weather?"), assistant(
        "", reasoning_content="I need the tool.", thinking="I need the tool.",
        tool_calls=[call("get_weather", {"place": "Bern"})]), RESULT],
        "tools": [WEATHER], "add_generation_prompt": True},
    "parts": {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                           {"role": "user", "content": [{"type": "text", "text": "One."},
                                                        {"type": "text", "text": "Two."}]}],
              "add_generation_prompt": True},
    "wrong_order": {"messages": [assistant("I begin"), user("no")], "add_generation_prompt": True},
    "two_users": {"messages": [user("a"), user("b")], "add_generation_prompt": True},
    "strange_role": {"messages": [user("a"), {"role": "critic", "content": "b"}], "add_generation_prompt": True},
    "developer": {"messages": [{"role": "developer", "content": "Rules."}, user("Hi")],
                  "tools": [CLOCK], "add_generation_prompt": True},
}


def variables(context):
    return {"tools": None, "documents": None, "bos_token": "<BOS>", "eos_token": "<EOS>", **context}


def render(source, context):
    try:
        template = _compile_jinja_template(source)
        text = template.render(**variables(context), strftime_now=lambda f: NOW.strftime(f))
        return {"output": text}
    except Exception as error:  # whatever Jinja or Python raises is an error of the template
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=pathlib.Path, default=DATA / "templates")
    parser.add_argument("--output", type=pathlib.Path, default=DATA / "goldens" / "templates.json")
    args = parser.parse_args()
    cases = []
    for path in sorted(args.templates.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, context in CONTEXTS.items():
            cases.append({"template": path.name, "context": name, **render(source, context)})
    expressions = args.templates / "expressions.txt"
    lines = expressions.read_text(encoding="utf-8").split("\n") if expressions.exists() else []
    for line in lines:
        if line and not line.startswith("## "):
            source = line.replace("⏎", "\n")
            cases.append({"source": source, "context": "tool_call", **render(source, CONTEXTS["tool_call"])})
    golden = {
        "made_with": f"jinja2 {jinja2.__version__}, transformers {transformers.__version__}",
        "now": int(NOW.timestamp()),
        "contexts": {name: variables(context) for name, context in CONTEXTS.items()},
        "cases": cases,
    }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace('},{"', '},\n{"')
    args.output.write_text(text + "\n", encoding="utf-8")
    errors = sum("error" in c for c in cases)
    print(f"{len(cases)} cases, {errors} of them errors")


if __name__ == "__main__":
    main()
