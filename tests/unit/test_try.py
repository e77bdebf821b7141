"""`trainer try`: places in files and texts, prompts, answers in columns, the page's server, and bad input."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from code_model import fim
from code_model.params import GenerationParams, invalid
from code_model.text import encode_prompt
from contract.errors import InputError, RatchetError
from trainer.cli import main
from trainer.config import Config
from trainer.playground.cursor import Place, in_file, in_text, prompt_of
from trainer.playground.models import Answer, answer, opened
from trainer.playground.terminal import converse, side_by_side, until_ctrl_c
from trainer.playground.web import MOST_BYTES, Server
from trainer.tracking import Terminated

CODE = "def f():\n    ré\r\n\nf()\n"


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny.folder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a:1.py"
    path.write_bytes(CODE.encode())
    return path


def of(name: str, text: str, **more: Any) -> Answer:
    return Answer(**{"name": name, "text": text, "tokens": 3, "seconds": 0.5, "probability": 0.5, "ended": True} | more)


# Where


@pytest.mark.parametrize(
    ("position", "prefix"),
    [("1:1", ""), ("1:9", "def f():"), ("2:6", "def f():\n    r"), ("2:7", "def f():\n    ré"), ("5:1", CODE)],
)
def test_a_place_in_a_file_is_counted_as_editors_do(file: Path, position: str, prefix: str) -> None:
    assert in_file(f"{file}:{position}") == Place(str(file), prefix, CODE[len(prefix) :])


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (":0:1", "has 5 lines"),
        (":6:1", "has 5 lines"),
        (":2:0", "line 2 of .* has 6 characters. Expected a column from 1 to 7"),
        (":2:8", "line 2 of .* has 6 characters. Expected a column from 1 to 7"),
        (":2", "Expected FILE:LINE:COLUMN"),
        (":two:1", "Expected FILE:LINE:COLUMN"),
        ("x:1:1", "cannot be read: .*No such file"),
        ("\0:1:1", "cannot be read: .*null byte"),
    ],
)
def test_a_place_that_is_not_there(file: Path, position: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        in_file(f"{file}{position}")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = '\xe9'\n")
    with pytest.raises(InputError, match=r"is not UTF-8: .* at byte 5"):
        in_file(f"{tmp_path / 'a.py'}:1:1")
    with pytest.raises(InputError, match="Is a directory"):
        in_file(f"{tmp_path}:1:1")


@pytest.mark.parametrize(
    ("text", "prefix", "suffix"),
    [("a = <|cursor|>\nb\n", "a = ", "\nb\n"), ("a = ", "a = ", ""), ("<|cursor|>b", "", "b")],
)
def test_a_place_in_a_text(text: str, prefix: str, suffix: str) -> None:
    assert in_text(text) == Place("", prefix, suffix)


def test_a_text_that_is_not_utf_8_is_said() -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        in_text("x = '\udcff'")


def test_a_files_name_that_is_not_utf_8_is_made_readable(tmp_path: Path) -> None:
    odd = tmp_path / "odd\udcff.py"
    odd.write_text("x = 1\n")
    assert in_file(f"{odd}:1:1").path == f"{tmp_path}/odd\N{REPLACEMENT CHARACTER}.py"


@pytest.mark.parametrize("text", ["", " \n", "<|cursor|>", "a<|cursor|>b<|cursor|>"])
def test_a_text_without_one_place(text: str) -> None:
    with pytest.raises(InputError, match=r"The text (is empty|has <\|cursor\|> 2 times)"):
        in_text(text)


# The prompt


def test_a_prompt_is_made_as_serving_makes_it(tokenizer) -> None:
    model = SimpleNamespace(tokenizer=tokenizer, window=240, positions=4096)
    gap = prompt_of(model, Place("a.py", "a = ", "\nb\n"), 100)
    assert gap == fim.rendered(fim.Context("a = ", "\nb\n", "a.py"), tokenizer)
    assert prompt_of(model, Place("", "a = ", "\n"), 100) == "a = "  # at the end: no gap
    long = prompt_of(model, Place("", "".join(f"before {n}\n" for n in range(500)) + "x = ", ""), 100)
    assert long.endswith("before 499\nx = ")
    assert 200 < len(encode_prompt(tokenizer, long)) <= 210  # seven eighths of the window; a token is a byte


# The models


def test_a_folder_is_a_model(tiny) -> None:
    with opened(Config(), str(tiny.folder), with_base=True) as models:
        [model] = models
        found = answer(model, Place("", "def f():\n", ""), GenerationParams(max_new_tokens=5))
        assert (found.name, found.tokens) == (str(tiny.folder), 5)
        assert not found.ended
        assert found.probability is not None
        assert 0 < found.probability < 1
        far = answer(model, Place("", "x\n" * 9_000, "y\n" * 9_000), GenerationParams(max_new_tokens=2))
        assert far.tokens == 2  # of a file with more tokens than the model has positions
        with pytest.raises(InputError, match="Expected less than 4096, the positions that"):
            answer(model, Place("", "x", ""), GenerationParams(max_new_tokens=4096))


# Answers in a terminal


def test_answers_stand_in_columns_where_there_is_room() -> None:
    found = side_by_side([of("base", "a\n  b\n"), of("tuned", "c", ended=False)], Place("", "x\n  y = ", ""), 100)
    base, tuned = zip(*((line + " " * 100).split("│")[:2] for line in found.splitlines()), strict=True)
    assert [line.rstrip() for line in base] == ["base", "3 tokens, 0.50 s, 50% sure", "─" * 48, "  y = a", "  b"]
    shown = [line.strip() for line in tuned]
    assert shown == ["tuned", "3 tokens, 0.50 s, 50% sure, cut off", "─" * 48, "y = c", ""]
    assert max(map(len, found.splitlines())) <= 100


def test_answers_stand_below_each_other_where_there_is_none() -> None:
    found = side_by_side([of("base", "a"), of("tuned", "b")], Place("", "", ""), 50).splitlines()
    assert [found[n] for n in (0, 3, 4, 5, 8)] == ["base", "a", "", "tuned", "b"]


def test_long_lines_and_wide_letters_are_wrapped() -> None:
    found = side_by_side([of("base", "x" * 60), of("tuned", "語" * 30)], Place("", "", ""), 83).splitlines()
    assert [line.split("│")[0].strip() for line in found[3:]] == ["x" * 40, "x" * 20]
    assert [line.split("│")[1].strip() for line in found[3:]] == ["語" * 20, "語" * 10]


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    found = side_by_side([of("base", "a\x1b]0;title\x07\rb\u202e\n\tc")], Place("", "", ""), 80)
    assert "a�]0;title��b�" in found
    assert "\n    c" in found


def test_ctrl_c_leaves_and_sigterm_ends_the_command() -> None:
    with until_ctrl_c():
        raise KeyboardInterrupt
    with pytest.raises(Terminated), until_ctrl_c():
        raise Terminated


def test_a_conversation_goes_on_until_there_is_no_more() -> None:
    lines = iter(["def f():", "    <|cursor|>", "f()", ".", ".", "x = ", None, None])
    said: list[str] = []

    def read(prompt: str) -> str:
        if (line := next(lines)) is None:
            raise EOFError
        return line

    converse(read, said.append, lambda place: f"{place.prefix!r} {place.suffix!r}")
    help, first, empty, last = said
    assert "<|cursor|>" in help
    assert (first, last) == ("\n'def f():\\n    ' '\\nf()'\n", "\n'x = ' ''\n")
    assert empty.startswith("The text is empty")


# The page


@pytest.fixture
def server() -> Iterator[Server]:
    def complete(place: Place, params: GenerationParams) -> list[Answer]:
        if place.prefix == "no positions":
            raise invalid("exceeds")
        if place.prefix == "broken":
            raise RatchetError("The version's own code failed")
        if place.prefix == "worse":
            raise ZeroDivisionError("by zero")
        return [of("base", place.suffix), of("tuned", f"{place.prefix}{params.max_new_tokens}")]

    with Server(["base", "tuned</script>"], complete, GenerationParams(), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), given)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_is_for_whoever_has_the_token(server: Server) -> None:
    status, html = request(server, "GET", server.url.partition(str(server.server_port))[2])
    assert (status, "tuned\\u003c/script>" in html) == (200, True)
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/", "/?token=", "/?token=%C3%A9", f"/?token={server.token}x"):
        status, found = request(server, "GET", path)
        assert (status, "The token is missing or wrong" in json.loads(found)["error"]) == (403, True)
    assert request(server, "POST", "/complete", {"prefix": "a"})[0] == 403
    assert request(server, "POST", f"/complete?token={server.token}", {"prefix": "a"})[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", ""])
def test_a_name_that_was_made_to_lead_here_gets_nothing(server: Server, host: str) -> None:
    status, found = request(server, "GET", f"/?token={server.token}", Host=host)
    assert (status, "for another host" in json.loads(found)["error"]) == (403, True)
    assert request(server, "POST", "/complete", {"prefix": "a"}, Host=host, X_Token=server.token)[0] == 403


def test_completions(server: Server) -> None:
    asked = {"prefix": "a", "suffix": "b", "max_new_tokens": 7}
    status, found = request(server, "POST", "/complete", asked, X_Token=server.token)
    assert (status, [item["text"] for item in json.loads(found)["answers"]]) == (200, ["b", "a7"])


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([], 400, "a JSON array"),
        ({"prefix": 1}, 400, "prefix is 1"),
        ({"suffix": "\ud800"}, 400, "suffix is '\\ud800'"),
        ({"prefix": " \n"}, 400, "no code to complete"),
        ({"prefix": "a", "top": 1}, 400, "The request has top."),
        ({"prefix": "a", "max_new_tokens": 0}, 400, "max_new_tokens is 0"),
        ({"prefix": "a", "temperature": "hot"}, 400, "temperature is 'hot'"),
        ({"prefix": "no positions"}, 400, "exceeds"),
        ({"prefix": "broken"}, 500, "own code failed"),
        ({"prefix": "worse"}, 500, "ZeroDivisionError: by zero"),
    ],
)
def test_what_is_wrong_is_said_as_json(server: Server, body: Any, status: int, expected: str) -> None:
    found, answer = request(server, "POST", "/complete", body, X_Token=server.token)
    assert found == status
    assert expected in json.loads(answer)["error"]
    assert "Traceback" not in answer


@pytest.mark.parametrize(
    ("length", "status", "expected"),
    [
        (None, 411, "no Content-Length"),
        ("-1", 411, "no Content-Length"),
        (str(MOST_BYTES + 1), 413, f"Expected at most {MOST_BYTES}"),
        ("9" * 5000, 413, f"Expected at most {MOST_BYTES}"),
    ],
)
def test_a_request_is_not_read_that_is_too_long_or_does_not_say(
    server: Server, length: str | None, status: int, expected: str
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest("POST", "/complete")
    connection.putheader("X-Token", server.token)
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, expected in json.loads(answer.read())["error"]) == (status, True)


@pytest.mark.parametrize(
    ("line", "status"), [("PUT / HTTP/1.1", 405), ("nonsense", 400), (f"GET /{'x' * 70_000} HTTP/1.1", 414)]
)
def test_what_is_no_request_of_the_page_gets_json_too(server: Server, line: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(f"{line}\r\n\r\n".encode())
        with contextlib.closing(connection.makefile("rb")) as answer:
            head, _, body = answer.read().decode().rpartition("\r\n\r\n")
    assert set(json.loads(body)) == {"error"}
    assert not head or f" {status} " in head.splitlines()[0]  # a line of one word is taken for HTTP/0.9, without a head


def test_a_port_that_is_taken(server: Server) -> None:
    with pytest.raises(InputError, match=f"--port is {server.server_port}, which cannot be had"):
        Server([], lambda place, params: [], GenerationParams(), server.server_port)
    with pytest.raises(InputError, match="--port is 99999, which cannot be had"):
        Server([], lambda place, params: [], GenerationParams(), 99999)


# The command


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        (["nowhere.py:1:1"], b"", "The file 'nowhere.py' cannot be read"),
        (["a.py"], b"", "Expected FILE:LINE:COLUMN"),
        (["a.py:1:1", "b.py:1:1"], b"", "There are a.py:1:1 b.py:1:1. Expected one of them."),
        (["--page", "-"], b"", "There are - and --page. Expected one of them."),
        (["--port", "80", "-"], b"x", "there is no --page"),
        (["-", "--max-new-tokens", "0"], b"x", "max_new_tokens is 0. Expected 1 or more."),
        (["-", "tracking.nothing=1"], b"x", "nothing"),
        ([], b"", "The text is empty"),
        (["-"], b"\xff", "The text is not UTF-8: invalid start byte at byte 0"),
        (["-", "tracking.uri=nowhere"], b"x", "tracking.uri is 'nowhere'"),
    ],
)
def test_bad_input_is_said_before_anything_is_loaded(arguments: list[str], given: bytes, expected: str) -> None:
    found = CliRunner().invoke(main, ["try", *arguments], input=given)
    assert (found.exit_code, expected in found.output) == (2, True), found.output


def test_no_tracking_server() -> None:
    found = CliRunner().invoke(main, ["try", "-", "tracking.uri=http://127.0.0.1:9"], input="x")
    assert (found.exit_code, "No tracking server at" in found.output) == (3, True)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["try", "-", "--model-uri", str(tmp_path)], input="x")
    assert (found.exit_code, f"--model-uri is the folder '{tmp_path}', which holds []" in found.output) == (2, True)


def test_a_text_is_completed(tiny) -> None:
    arguments = ["try", "--model-uri", str(tiny.folder), "--max-new-tokens", "4"]
    found = CliRunner().invoke(main, arguments, input="def f():\n    x<|cursor|>\n\nf()\n")
    assert found.exit_code == 0, found.output
    assert "\n    x" in found.stdout
    assert "4 tokens, " in found.stdout
    assert f"Loading {tiny.folder} took" in found.stderr
