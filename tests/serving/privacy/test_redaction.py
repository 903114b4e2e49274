import time
from random import Random
from string import ascii_uppercase

import pytest
from asgi import PREDICT, metrics
from stdnum import iban, luhn
from stdnum.es import dni

from deploykit.artifact import ServeOptions
from deploykit.serving.privacy.redaction import KIND_NAMES, redact


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111 1111 1111 1112 was late",  # no checksum
        "0000 0000 0000 0000",
        "GB29NWBK60161331926818",  # no checksum
        "version 1.2.3.4.5 and 999.1.1.1 at 12:30:45",
        "std::vector and a::b are no addresses",
        "on 2024-01-15 at 10:15, 1,234,567 of 89 012",
        "12345678A",  # not its letter
        "111.111.111-11 and 123.456.789-00",
        "666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000",
        "invoice 123456789012 of 2023",
        "on 01.02.2023 10:15, 03/04/1999 12 or 05-06-2024",
        "05/06/2023-07/06/2023, 05/06/2023 12345, 05/06/2023 12.30",
        "2023-01-15 12345 units, 2023-01-02/2023-01-05",
        "ns::c1::d2 and 300 400 5000, 212-555.0123, 112-555-0123",
        "AB12 CDEF 3456 GHIJ 7890 KLMN",
        "1234 5678 9012 3456 7890 1234",
        "me@home and @handle",
        "4111\t1111\t1111\t1112 and 4111\u00a01111\u00a01111\u00a01112",  # no checksum either
        "12\t345\t6789\t1011\t1213\t14",
        "1\u2009234\u2009567 of 89\u2009012 in 2019\u20132020",
        "",
    ],
)
def test_what_is_no_personal_data_stays(text):
    assert redact(text) == (text, {})


@pytest.mark.parametrize(
    ("kind", "data", "masked"),
    [
        ("email", "anna.lee+x@mail.example.org", "xxxx.xxx+x@xxxx.xxxxxxx.xxx"),
        ("email", "jörg@müller.de", "xxxx@xxxxxx.xx"),
        ("card", "4111 1111 1111 1111", "0000 0000 0000 0000"),
        ("card", "378282246310005", "0" * 15),
        ("card", "5555-5555-5555-4444", "0000-0000-0000-0000"),
        ("iban", "DE89 3704 0044 0532 0130 00", "xx00 0000 0000 0000 0000 00"),
        ("iban", "GB29NWBK60161331926819", "xx00xxxx" + "0" * 14),
        ("ip", "192.168.10.254", "000.000.00.000"),
        ("ip", "2001:db8::ff00:42:8329", "0000:xx0::xx00:00:0000"),
        ("ip", "::1", "::0"),
        ("ip", "::ffff:10.2.3.4", "::xxxx:00.0.0.0"),
        ("national_id", "529.982.247-25", "000.000.000-00"),
        ("national_id", "52998224725", "0" * 11),
        ("national_id", "12345678Z", "00000000x"),
        ("national_id", "X1234567L", "x0000000x"),
        ("national_id", "536-90-4399", "000-00-0000"),
        ("national_id", "12.345.678-Z", "00.000.000-x"),
        ("phone", "+290 8999", "+000 0000"),
        ("phone", "+992-372-12-3456", "+000-000-00-0000"),
        ("phone", "+49 170 1234567", "+00 000 0000000"),
        ("phone", "+1 (555) 010-9999", "+0 (000) 000-0000"),
        ("phone", "0170/1234567", "0000/0000000"),
        ("phone", "00351 912 345 678", "00000 000 000 000"),
        ("phone", "01.02.03.04.05", "00.00.00.00.00"),
        ("phone", "(212) 555-0123", "(000) 000-0000"),
        ("phone", "212-555-0123", "000-000-0000"),
        ("phone", "1-800-555-1234", "0-000-000-0000"),
        ("phone", "(415)-555-2671", "(000)-000-0000"),
        ("phone", "212.555.0123", "000.000.0000"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "Call {}, please.", "({})", "über {} und\n"])
def test_personal_data_is_masked_in_place(kind, data, masked, around):
    text, found = redact(around.format(data))
    assert text == around.format(masked)
    assert found == {kind: 1}


SPACES = ("\u00a0", "\u202f", "\u2009", "\u2007", "\u3000")
HYPHENS = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2212", "\uff0d")
BREAKS = ("\t", "\n", "\r\n", "\u2028", "  ")
UNSEEN = ("\u200b", "\u2060", "\ufeff", "\u00ad")
NUMBERS = {  # kind: a number, and what may stand between its parts
    "card": ("4111 1111 1111 1111", (*SPACES, *HYPHENS, *BREAKS, *UNSEEN, ".", "\uff0e")),
    "iban": ("DE89 3704 0044 0532 0130 00", (*SPACES, *HYPHENS, *BREAKS, *UNSEEN, ".")),
    "phone": ("+49 30 1234567", (*SPACES, *HYPHENS, *UNSEEN, ".", "/")),
    "national_id": ("536 90 4399", HYPHENS),
}


def digits_left(text):
    return [sign for sign in text if sign.isdigit() and sign not in "0\uff10"]


@pytest.mark.parametrize(
    ("kind", "between"), [(kind, sign) for kind, (_, signs) in NUMBERS.items() for sign in signs], ids=ascii
)
def test_numbers_are_masked_as_documents_and_web_pages_write_them(kind, between):
    data = NUMBERS[kind][0].replace(" ", between)
    masked, found = redact(f"It is {data}, or so")
    assert found == {kind: 1}
    assert digits_left(masked) == []
    assert len(masked) == len(f"It is {data}, or so")
    assert masked.count(between) >= data.count(between)  # what stands between them stays


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("card", "card-4111111111111111", "card-0000000000000000"),
        ("card", "4111 1111\n1111 1111", "0000 0000\n0000 0000"),
        ("card", "\uff14\uff11\uff11\uff11" + "1" * 12, "0" * 16),
        ("card", "\u0664\u0661\u0661\u0661" + "1" * 12, "0" * 16),
        ("iban", "IBANDE89370400440532013000", "IBANxx00000000000000000000"),
        ("iban", "DE89370400440532013000COBADEFFXXX", "xx00000000000000000000COBADEFFXXX"),
        ("phone", "\uff0b49 30 1234567", "\uff0b00 00 0000000"),
        ("phone", "(030)\u202f1234567", "(000)\u202f0000000"),
        ("email", "john\uff20example.com", "xxxx\uff20xxxxxxx.xxx"),
        ("email", "\uff4a\uff4fhn@example\uff0ecom", "xxxx@xxxxxxx\uff0exxx"),
        ("email", "jo\u0308rg@example.com", "xx\u0308xx@xxxxxxx.xxx"),
        ("email", "jo\u200bhn@exam\u00adple.com", "xx\u200bxx@xxxx\u00adxxx.xxx"),
        ("email", "anna@mail\u3002example", "xxxx@xxxx\u3002xxxxxxx"),
        ("phone", "06\u00b712\u00b734\u00b756\u00b778", "00\u00b700\u00b700\u00b700\u00b700"),
        ("ip", "\uff11\uff19\uff12.168.10.254", "000.000.00.000"),
        ("national_id", "529\u00a0982\u00a0247\u00a025", "000\u00a0000\u00a0000\u00a000"),
        ("national_id", "12345678\u2011Z", "00000000\u2011x"),
    ],
    ids=ascii,
)
def test_signs_that_mean_the_same_are_read_as_the_same_and_stay(kind, text, masked):
    assert redact(text) == (masked, {kind: 1})


@pytest.mark.parametrize("kind", ["card", "iban", "national_id"])
def test_what_has_a_checksum_is_masked_where_stdnum_accepts_it(kind):
    """Among random numbers, whatever another implementation of the checksums accepts, and nothing else."""
    random, accepted = Random(0), 0  # noqa: S311
    makers = {
        "card": (lambda: str(random.randrange(10**15, 10**16)), luhn.is_valid),
        "iban": (lambda: f"DE{random.randrange(100):02}{random.randrange(10**18):018}", iban.is_valid),
        "national_id": (lambda: f"{random.randrange(10**8):08}{random.choice(ascii_uppercase)}", dni.is_valid),
    }
    make, is_valid = makers[kind]
    for _ in range(1500):
        number = make()
        assert (redact(f"no {number} yes")[1].get(kind, 0) == 1) == is_valid(number), number
        accepted += is_valid(number)
    assert accepted > 5


@pytest.mark.parametrize("style", ["INTERNATIONAL", "E164", "RFC3966"])
def test_telephone_numbers_of_every_country_are_masked_in_their_international_forms(style):
    phonenumbers = pytest.importorskip("phonenumbers")
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    examples = [
        phonenumbers.example_number_for_type(region, kind)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
    ]
    texts = [
        phonenumbers.format_number(number, getattr(phonenumbers.PhoneNumberFormat, style))
        for number in examples
        if number is not None
    ]
    assert len(texts) > 400
    assert [text for text in texts if digits_left(redact(f"Call {text}, please")[0])] == []


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("iban", "IBAN DE89370400440532013000 BIC COBADEFFXXX", "IBAN xx00000000000000000000 BIC COBADEFFXXX"),
        ("iban", "NL91ABNA0417164300 BIC ABNANL2A", "xx00xxxx0000000000 BIC ABNANL2A"),
        ("iban", "AB12 de89-3704-0044-0532-0130-00 50 EUR", "AB12 xx00-0000-0000-0000-0000-00 50 EUR"),
        ("card", "4111 1111 1111 1111 12/27", "0000 0000 0000 0000 12/27"),
        ("card", "4111 1111 1111 1111 124", "0000 0000 0000 0000 124"),
        ("card", "2024 4111-1111-1111-1111-124", "2024 0000-0000-0000-0000-124"),
        ("card", "12 4111111111111111 124", "12 0000000000000000 124"),
        ("card", "card 3782 822463 10005 0125", "card 0000 000000 00000 0125"),
        ("ip", "192.168.0.1:8080", "000.000.0.0:8080"),
        ("ip", "from 192.168.0.1: down", "from 000.000.0.0: down"),
        ("ip", "ip:192.168.0.1 [2001:db8::1]:443", "ip:000.000.0.0 [0000:xx0::0]:443"),
        ("ip", "host:2001:db8::1", "host:0000:xx0::0"),
        ("phone", "06 12 34 56 78 06 87 65 43 21", "00 00 00 00 00 00 00 00 00 00"),
        ("phone", "01-01-2020 415-555-2671", "01-01-2020 000-000-0000"),
        ("phone", "0170 1234567 5kg", "0000 0000000 5kg"),
        ("phone", "0049 170 1234567 123", "0000 000 0000000 000"),
        ("phone", "+49 170 1234567 2023 12 24", "+00 000 0000000 0000 00 00"),
    ],
)
def test_what_stands_beside_personal_data_does_not_hide_it(kind, text, masked):
    found, counts = redact(text)
    assert found == masked
    assert set(counts) == {kind}


def test_all_of_a_text_is_looked_at():
    text = "a@b.example, c@d.example and 4111111111111111, again 4111111111111111"
    masked, found = redact(text)
    assert len(masked) == len(text)
    assert found == {"email": 2, "card": 2}
    assert redact(masked)[0] == masked


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "a@", ":", "1 ", "DE11 ", "DE", "1111 ", "a.", "0 (", "1.", "a@b.", "1:", "g:", "01 ", "00", "DE11"),
        *("\u200b", "1\u200b", "\u0661\u00a0", "1\n", "\uff11", "\u4e00", "DE1\u20111"),
    ],
    ids=ascii,
)
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    redact(piece * (200_000 // len(piece)))
    assert time.perf_counter() - start < 5


def test_names_that_are_found_are_masked_with_the_rest():
    def find(text):
        return [(text.index("Anna"), text.index("Anna") + len("Anna Lee a")), (0, 3)]

    text = "Bob and Anna Lee anna@mail.example, 12"
    masked = "xxx and xxxx xxx xxxx@xxxx.xxxxxxx, 12"
    assert redact(text, find) == (masked, {"email": 1, "person": 2})
    assert redact("nobody", lambda _: []) == ("nobody", {})


def test_the_model_reads_what_is_masked_where_that_is_asked_for(serve, make_package, tmp_path):
    def answered(redacted, text):
        made = make_package(tmp_path / f"{redacted}-{len(text)}", serve=ServeOptions(redact=redacted))
        client = serve(made.path)
        return client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"], metrics(client)

    text = "the film of anna@mail.example is great"
    masked, seen = answered(True, text)
    assert masked == answered(False, redact(text)[0])[0]
    assert masked != answered(False, text + " ")[0]
    assert [seen[f'deploykit_redacted_total{{kind="{name}"}}'] for name in KIND_NAMES] == [1, 0, 0, 0, 0, 0, 0]
