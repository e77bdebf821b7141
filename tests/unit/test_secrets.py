"""Which secrets are overwritten, whole, and what is left alone."""

import pytest

from trainer.data.secrets import Redactor

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "AWS": "AKIA" + "QWERTYUIOPASDFGH",
    "GitHub": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "Slack": "xoxb-" + "123456789012-1234567890123-abcdefghijklmnopqrstuvwx",
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "JWT": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5NXgL0n3I9PlFUP0THsR8U",
    "hex": "2b00042f7481c7b056c4" + "b410d28f33cf1a2b3c4d",
}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("suffix", [".py", ".go", ".java", ".ts", ".rs"])
def test_token_is_overwritten_whole(name: str, suffix: str) -> None:
    with Redactor() as redactor:
        text, found = redactor.redact(f'a = 1\nx = "{SECRETS[name]}"\nb = 2\n', suffix)
    assert text == 'a = 1\nx = "REDACTED"\nb = 2\n'
    assert [line for line, _ in found] == [2]


def test_password_and_url() -> None:
    with Redactor() as redactor:
        assert redactor.redact('password = "hunter2hunter"')[0] == 'password = "REDACTED"'
        assert redactor.redact('u = "https://bob:s3cr3tpw@host/x"')[0] == 'u = "https://bob:REDACTED@host/x"'


def test_private_key_goes_with_all_its_lines() -> None:
    body = "".join(f"MIIEow{n}\n" for n in range(3))
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----"
    with Redactor() as redactor:
        text, found = redactor.redact(f"x = 1\nk = '''{key}'''\ny = 2\n")
    assert text == "x = 1\nk = '''REDACTED PRIVATE KEY'''\ny = 2\n"
    assert found == [(2, "Private Key")]


@pytest.mark.parametrize(
    "line",
    [
        'password = os.environ["PASSWORD"]',
        'u = "123e4567-e89b-12d3-a456-426614174000"',
        "def get_secret_key(self, name: str) -> str:",
        "some_rather_long_identifier_of_a_function(argument)",
        'address = "192.168.17.4"',
    ],
)
def test_ordinary_code_is_left_alone(line: str) -> None:
    with Redactor() as redactor:
        assert redactor.redact(line) == (line, [])
