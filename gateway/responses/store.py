"""Responses that were kept: as many as fit, the least recently used leave first. Used from several threads."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import msgspec

from gateway.openai import encode
from gateway.responses.types import Item, Response

_log = logging.getLogger("headrace.responses")
_OVERHEAD_BYTES = 512  # what an entry takes beside its bytes
_decode_response = msgspec.json.Decoder(Response).decode
_decode_items = msgspec.json.Decoder(list[Item]).decode


def new_record(response_id: str, owner: str | None, input_items: Sequence[Item]) -> Record:
    """Without its response."""
    return Record(response_id, owner, b"", encode(input_items), tuple(item.id for item in input_items))


@dataclass(frozen=True, slots=True)
class Record:
    """Kept as JSON: a struct of the same would take many times the memory."""

    id: str
    owner: str | None  # the name of the key that made it
    body: bytes
    input_body: bytes
    item_ids: Sequence[str]

    def with_response(self, response: Response) -> Record:
        ids = (*self.item_ids, *(item.id for item in response.output))
        return replace(self, body=encode(response), item_ids=ids)

    @property
    def item_keys(self) -> list[tuple[str | None, str]]:
        return [(self.owner, item_id) for item_id in self.item_ids]

    @property
    def num_bytes(self) -> int:
        return len(self.body) + len(self.input_body) + 2 * sum(map(len, self.item_ids)) + _OVERHEAD_BYTES

    @property
    def response(self) -> Response:
        return _decode_response(self.body)

    @property
    def input_items(self) -> list[Item]:
        return _decode_items(self.input_body)

    @property
    def items(self) -> list[Item]:
        return [*self.input_items, *self.response.output]


class Store:
    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._of_item: dict[tuple[str | None, str], str] = {}
        self._num_bytes = 0
        self._lock = Lock()

    @property
    def is_on(self) -> bool:
        return self._max_entries > 0 and self._max_bytes > 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        """In place of the one with its id. One that is larger than the whole store is not kept."""
        with self._lock:
            self._remove(record.id)
            if record.num_bytes > self._max_bytes:
                _log.warning("%s is not kept: %d bytes of %d", record.id, record.num_bytes, self._max_bytes)
                return
            self._records[record.id] = record
            self._num_bytes += record.num_bytes
            self._of_item.update(dict.fromkeys(record.item_keys, record.id))
            while len(self._records) > self._max_entries or self._num_bytes > self._max_bytes:
                self._remove(next(iter(self._records)))

    def get(self, response_id: str, owner: str | None) -> Record | None:
        """None: there is none, or it is somebody else's."""
        with self._lock:
            record = self._records.get(response_id)
            if record is None or record.owner != owner:
                return None
            self._records.move_to_end(response_id)
            return record

    def with_item(self, item_id: str, owner: str | None) -> Record | None:
        """The latest of its owner's in which this item stands."""
        return self.get(self._of_item.get((owner, item_id), ""), owner)

    def delete(self, response_id: str) -> None:
        with self._lock:
            self._remove(response_id)

    def _remove(self, response_id: str) -> None:
        record = self._records.pop(response_id, None)
        if record is None:
            return
        self._num_bytes -= record.num_bytes
        for key in record.item_keys:
            if self._of_item.get(key) == response_id:
                del self._of_item[key]
