import base64
import random

import pytest

from router.redact import MARGIN, redact, redacted

TAKEN = [
    ("Write to jo.doe+shop@mail.example.co.uk.", "Write to [email]."),
    ("<jörg@müller.example>", "<[email]>"),
    ("a_b%c@x-y.org,d@e.fr", "[email],[email]"),
    ("mailto:jo@example.com?subject=x", "mailto:[email]?subject=x"),
    ("postgres://app:s3cret@db.example/x", "postgres://[credentials]@db.example/x"),
    ("https://token@host/a?b=c@d", "https://[credentials]@host/a?b=c@d"),
    ("redis://:p@ss@host:6379", "redis://[credentials]@host:6379"),
    ("OPENAI_API_KEY=sk-proj-Abc123Def456Ghi789", "OPENAI_API_KEY=[key]"),
    ("my key is dg-Zx9_kQ2-Lm4Pz7TtRw0abcdefghijklmnopqrstuvw", "my key is [key]"),
    ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "[key]"),
    ("AKIAIOSFODNN7EXAMPLE", "[key]"),
    ("xoxb-123456789012-abcdef", "[key]"),
    ("md5 d41d8cd98f00b204e9800998ecf8427e", "md5 [secret]"),
    ("SECRET=Jx7/qP0+zT4mK9vR2bN8cW1yL5dF3hG6sA0=", "SECRET=[secret]"),
    ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.x", "[secret].x"),
    ("DE89 3704 0044 0532 0130 00 please", "[iban] please"),
    ("GB82WEST12345698765432", "[iban]"),
    ("fr14 2004 1010 0505 0001 3m02 606, thanks", "[iban], thanks"),
    ("Card 4111 1111 1111 1111, exp 12/27", "Card [card], exp 12/27"),
    ("5500-0055-5555-5559", "[card]"),
    ("amex 378282246310005 or 3782 822463 10005", "amex [card] or [card]"),
    ("I pay 12 4111111111111111 now", "I pay 12 [card] now"),
    ("4111 1111 1111 1111 5500 0055 5555 5559", "[card] [card]"),
    ("Call +49 30 901820 or (555) 123-4567.", "Call [phone] or [phone]."),
    ("+1-202-555-0143, 0049 30 901820", "[phone], [phone]"),
    ("555-123-4567 0151 23456789", "[phone] [phone]"),
    ("06 12 34 56 78 07911123456 020 7946 0958", "[phone] [phone] [phone]"),
    ("Tel. (030) 901820-12", "Tel. [phone]"),
    ("from 192.168.0.17, 10.0.0.1:8080", "from [ip], [ip]:8080"),
    ("fe80::1ff:fe23:4567:890a and 2001:db8::1 ", "[ip] and [ip] "),
]
LEFT = [
    "",
    "The lamp costs $45, or $1,234.56 for 30.",
    "1.234,56 € and 12 000 000 kr",
    "Order 2024-001234, invoice 10293847, ticket #555123",
    "Order 4111 1111 1111 1112",  # no card: its digits don't add up
    "0.4111111111111111 and 3.14159265358979",
    "On 2024-01-02 at 10:30:45, 05/06/2024, 01-02-2024 1030, 1.2.2024",
    "From 1999 to 2024, 100-200 pieces",
    "Version 1.2.3, v10.0.1, section 1.2.3.4.5",
    "999.1.1.1 and 1.2.3.400",
    "std::vector<int>, Face::add, a::b and 10:20",
    "x = y @ z; user@localhost; @handle; a@b",
    "https://example.com/a@b?c=d and http://h:80/x",
    "sk-learn-compatible-estimators, skateboard2024isgreat, dg-shop",
    "src/Components/Button2/ButtonGroup/index/MyFile",
    "AbstractSingletonProxyFactoryBean2Implementation",
    "how-to-use-the-new-2024-Model-X-with-PyTorch-2-5-1",
    "550e8400-e29b-41d4-a716-446655440000",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "GB82 WEST 1234 5698 7654 33 is mistyped",
    "AB12 CDEF 3456 7890 1234",
    "2 + 1234567 = 1234569 and 5+12345678",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
]


@pytest.mark.parametrize(("text", "shown"), TAKEN)
def test_what_nobody_should_read_is_taken_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", LEFT)
def test_all_else_stays(text: str) -> None:
    assert redact(text) == text


def test_random_secrets_are_recognised() -> None:
    rng = random.Random(3)
    keys = [base64.urlsafe_b64encode(rng.randbytes(48)).decode() for _ in range(1000)]
    assert sum(redact(key) == "[secret]" for key in keys) > 990


def test_a_text_is_cut_after_it_was_redacted() -> None:
    assert redacted("Card 4111 1111 1111 1111, yes", 13) == "Card [card], "
    assert redacted("short", 500) == "short"


def test_what_the_cut_leaves_of_a_secret_is_not_shown() -> None:
    """Long secrets that become short words make room for the text behind, whose last number was cut in two."""
    text = "d41d8cd98f00b204e9800998ecf8427e " * 40 + "and 4111 1111 1111 1111" * 20
    for most in range(1, 400):
        shown = redacted(text, most)
        assert len(shown) <= most
        assert "4111" not in shown
    assert len(redacted("x y " * MARGIN, MARGIN)) == MARGIN


HOSTILE = "a|1|1 |12 |@|a@|a.|a@b.|://|://a:|0 |00|+1|+|AA11|ab12 |a:|:|::1 |A1b|-|(|(0|sk-|sk-a|0-1 |1.|1.1.1.|/|é| |=|a=|4111 |0000"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", [*HOSTILE.split("|"), "x" * 31 + " "])
def test_hostile_texts_take_linear_time(piece: str) -> None:
    """In quadratic time it would be hours."""
    text = (piece * 100_000)[:100_000]
    assert redact(text + "!").endswith("!")
