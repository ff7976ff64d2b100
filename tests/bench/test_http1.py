"""Answers from bytes, however they are cut."""

import pytest

from bench.http1 import Broken, Reader

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=1\r\n world\r\n0\r\na: b\r\n\r\n"
LENGTH = b"HTTP/1.1 201 Made\r\ncontent-length: 11\r\n\r\nhello world"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


@pytest.mark.parametrize("wire", [CHUNKED, LENGTH, CONTINUED])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_body_is_the_same_however_it_is_cut(wire: bytes, size: int) -> None:
    reader, body = Reader(), b""
    for at in range(0, len(wire), size):
        assert not reader.ended
        body += reader.feed(wire[at : at + size])
    assert (body, reader.ended, reader.reusable) == (b"hello world", True, True)
    assert reader.status in (200, 201)


def test_a_line_end_within_a_chunk_is_part_of_the_body() -> None:
    assert (
        Reader().feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n\r\n0\r\n\r\n\r\n")
        == b"\r\n0\r\n\r\n"
    )


def test_without_a_length_the_body_ends_with_the_connection() -> None:
    reader = Reader()
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nhello") + reader.feed(b" world") == b"hello world"
    assert not reader.ended
    reader.close()
    assert reader.ended and not reader.reusable


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive", True),
        (b"HTTP/1.1 204 None", True),
    ],
)
def test_whether_a_connection_is_kept(head: bytes, reusable: bool) -> None:
    reader = Reader()
    reader.feed(head + b"\r\n\r\n")
    assert (reader.ended, reader.reusable) == (True, reusable)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 ok\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (65 << 10),
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfive\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 5000,
    ],
)
def test_what_is_no_answer_is_refused(wire: bytes) -> None:
    with pytest.raises(Broken):
        Reader().feed(wire)


@pytest.mark.parametrize(
    ("so_far", "told"), [(b"", "without an answer"), (CHUNKED[:-2], "within"), (LENGTH[:-1], "within")]
)
def test_an_end_too_early_is_told(so_far: bytes, told: str) -> None:
    reader = Reader()
    reader.feed(so_far)
    with pytest.raises(Broken, match=told):
        reader.close()
