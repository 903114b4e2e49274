import time

import pytest
from asgi import PREDICT, metrics

from deploykit.artifact import ServeOptions
from deploykit.serving.privacy.redaction import NAMES, redact


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
        ("national_id", "219-09-9999", "000-00-0000"),
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
    "piece", ["1", "a@", ":", "1 ", "DE11 ", "DE", "1111 ", "a.", "0 (", "1.", "a@b.", "1:", "g:", "01 ", "00"]
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
    assert [seen[f'deploykit_redacted_total{{kind="{name}"}}'] for name in NAMES] == [1, 0, 0, 0, 0, 0, 0]
