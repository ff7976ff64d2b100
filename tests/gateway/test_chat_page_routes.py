"""What answers at / and below /chatpage: files that anybody may have."""

import re

import httpx
import pytest

from gateway.chatpage.files import FOLDER, PAGE, PARTS

PATHS = ["/", *(f"/chatpage/{name}" for name in PARTS)]


@pytest.mark.parametrize("path", PATHS)
async def test_files_are_strict_about_where_things_come_from(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200 and answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    kind = {"css": "text/css", "js": "text/javascript"}.get(path.rpartition(".")[2], "text/html")
    assert answer.headers["content-type"].startswith(kind)
    assert set(re.findall(r"https?://[^\s'\"?:]+", answer.text)) <= {"http://www.w3.org/2000/svg"}  # a name
    assert not re.search(r"innerHTML|insertAdjacent|outerHTML|document\.write|\beval\b|new Function", answer.text)


def test_every_part_is_asked_for_by_another() -> None:
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert set(texts) == {PAGE, *PARTS}
    for name in PARTS:
        assert any(f'/{name}"' in text for other, text in texts.items() if other != name), name


async def test_a_file_that_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", PAGE, "..%2froutes.py", ""])
async def test_there_are_no_other_files(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/chatpage/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
