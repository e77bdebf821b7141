"""Which secrets are overwritten, whole, and what is left alone."""

import pytest

from contract.secrets import Redactor, overwrite

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "AWS": "AKIA" + "QWERTYUIOPASDFGH",
    "GitHub": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "Slack": "xoxb-" + "123456789012-1234567890123-abcdefghijklmnopqrstuvwx",
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "JWT": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5NXgL0n3I9PlFUP0THsR8U",
    "hex": "2b00042f7481c7b056c4" + "b410d28f33cf1a2b3c4d",
}


def redact(text: str, suffix: str = ".py") -> str:
    with Redactor() as redactor:
        return overwrite(text, redactor.find(text, suffix))


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("suffix", [".py", ".go", ".java", ".ts", ".rs"])
def test_token_is_overwritten_whole(name: str, suffix: str) -> None:
    text = f'a = 1\nx = "{SECRETS[name]}"\nb = 2\n'
    assert redact(text, suffix) == 'a = 1\nx = "REDACTED"\nb = 2\n'
    with Redactor() as redactor:
        assert {secret.line for secret in redactor.find(text, suffix)} == {2}


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [
        ('password = "hunter2hunter"', ".py", 'password = "REDACTED"'),
        ('u = "https://bob:s3cr3tpw@host/x"', ".py", 'u = "https://bob:REDACTED@host/x"'),
        ('login(password="pass", passwords=1)', ".py", 'login(password="REDACTED", passwords=1)'),
        ('check_password("pw1", password="word")', ".py", 'check_password("pw1", password="REDACTED")'),
        ('{"password": "password"}', ".py", '{"password": "REDACTED"}'),
        ('\tPassword: "hunter2hunter",', ".go", '\tPassword: "REDACTED",'),
        ('\tpassword := "hunter2hunter"', ".go", '\tpassword := "REDACTED"'),
    ],
)
def test_only_the_value_is_overwritten(text: str, suffix: str, expected: str) -> None:
    assert redact(text, suffix) == expected


LINES = "".join(f"MIIEowIBAAKCAQEA{n}x/y+zMIIEowIBAAKCAQEA{n}x/y+z\n" for n in range(3))
BEGIN, END = "-----BEGIN RSA " + "PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'x = 1\nk = """{BEGIN}\n{LINES}short=\n{END}"""\ny = 2\n', 'x = 1\nk = """REDACTED"""\ny = 2\n'),
        (f'k = "{BEGIN}\\nMIIEowIBAAKCAQEA0xMIIEowIBAAKCAQEA0x\\n{END}\\n"\ny = 2\n', 'k = "REDACTED\\n"\ny = 2\n'),
        (f"{BEGIN}\nProc-Type: 4,ENCRYPTED\n\n{LINES}", "REDACTED\n"),  # cut off before its end
        (f"{BEGIN}\n{LINES}x = f(1)\n{BEGIN}\n{LINES}{END}\n", "REDACTED\nx = f(1)\nREDACTED\n"),
    ],
)
def test_private_key_goes_with_all_its_lines_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "line",
    [
        'password = os.environ["PASSWORD"]',
        'u = "123e4567-e89b-12d3-a456-426614174000"',
        "def get_secret_key(self, name: str) -> str:",
        "some_rather_long_identifier_of_a_function(argument)",
        'address = "192.168.17.4"',
        f'HEADER = "{BEGIN}"\nFOOTER: str = "{END}"',
        f'{{begin: "{BEGIN}", end: "{END}"}}',
        f'h = "{BEGIN}"\n\nsomeFunctionWithLongName(1)',
        f'if text.startswith("{BEGIN}"):\n    return parse_a_private_key(text)',
    ],
)
def test_ordinary_code_is_left_alone(line: str) -> None:
    assert redact(line) == line


def test_odd_line_ends_do_not_move_a_line() -> None:
    assert redact("key a\rkey b\rpassword = 'hunter2hunter'\nc") == "key a\rkey b\rpassword = 'REDACTED'\nc"


def test_long_line_takes_no_longer_than_its_length() -> None:
    text = "x" * 300_000 + " " + SECRETS["AWS"]
    assert redact(text) == "x" * 300_000 + " REDACTED"
