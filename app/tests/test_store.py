"""The case store, on a real Redis with the user and the rights that hosts have."""

from __future__ import annotations

import dataclasses
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from serving_kit import PASSWORD, RedisServer

from lightbox.store import (
    FEEDBACK,
    INDEX,
    Case,
    CaseStore,
    Feedback,
    PageError,
    Query,
    StoreError,
    identity,
    read_password,
)

NOW = datetime.now(timezone.utc).replace(microsecond=0)


def case(number: int, **changes: object) -> Case:
    made = Case(
        id=f"case-{number:04d}",
        filename=f"{number}.png",
        label="Normal",
        confidence=0.99125,
        scores=(0.00875,),
        model_version="v1",
        source="upload",
        created=NOW - timedelta(seconds=number),
        thumbnail=b"\xff\xd8jpeg",
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def store(redis_server: RedisServer) -> CaseStore:
    return CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)


def test_a_case_comes_back_as_it_was_stored(store: CaseStore) -> None:
    store.add(case(1))
    assert store.get("case-0001") == case(1)
    assert store.get("nobody") is None


def test_all_that_is_known_of_a_case_comes_back(store: CaseStore) -> None:
    full = case(
        1,
        probabilities={"Normal": 0.99125, "Pneumonia": 0.00875},
        uncertain=True,
        unfamiliar="The image is in colour.",
        heat=bytes((1, 2, 0, 255)),
        heat_label="Pneumonia",
    )
    store.add(full, b"\xff\xd8a larger jpeg")
    assert store.get("case-0001") == full
    assert store.picture("case-0001") == b"\xff\xd8a larger jpeg"
    said = Feedback("Pneumonia", NOW)
    assert store.set_feedback("case-0001", said) == dataclasses.replace(full, feedback=said)
    store.add(case(1))
    assert store.get("case-0001") == case(1, feedback=said), "nothing of the replaced case is left but feedback"


def test_feedback_on_a_case_that_goes_leaves_nothing(store: CaseStore, redis_server: RedisServer) -> None:
    assert store.set_feedback("case-0001", Feedback("Normal", NOW)) is None
    with redis_server.client() as client:
        # What a deletion between two commands leaves.
        client.hset("lightbox:case:case-0001", "feedback_label", "Normal")
        assert store.set_feedback("case-0001", Feedback("Normal", NOW)) is None
        assert client.keys("*") == []
        store.add(case(2))
        store.set_feedback("case-0002", Feedback("Normal", NOW))
        client.delete("lightbox:case:case-0002")
        assert store.with_feedback().cases == ()
        assert client.zcard(FEEDBACK) == 0, "a case past the retention leaves the list when it is read"


def test_looking_through_many_cases_finds_them_all(store: CaseStore) -> None:
    store.add_many(case(number, label="Pneumonia" if number % 7 == 0 else "Normal") for number in range(2500))
    found = [store.find(Query(verdict="Pneumonia"), number, 100) for number in (1, 2, 3, 4)]
    assert found[0].total == len(range(0, 2500, 7))
    assert [item.id for page in found for item in page.cases] == [f"case-{number:04d}" for number in range(0, 2500, 7)]
    with pytest.raises(PageError):
        store.find(Query(verdict="Pneumonia"), 5, 100)


def test_pages_are_full_newest_first_and_counted(store: CaseStore) -> None:
    assert store.add_many(case(number) for number in range(453)) == 453
    first, last = store.page(), store.page(19)
    assert (first.total, first.pages, first.size, len(first.cases)) == (453, 19, 25, 25)
    assert [item.id for item in first.cases] == [f"case-{number:04d}" for number in range(25)]
    assert [item.id for item in last.cases] == ["case-0450", "case-0451", "case-0452"]
    seen = [item.id for number in range(1, 20) for item in store.page(number).cases]
    assert len(set(seen)) == len(seen) == 453


def test_cases_of_one_moment_keep_their_order(store: CaseStore) -> None:
    store.add_many(case(number, created=NOW) for number in range(60))
    once = [item.id for number in (1, 2, 3) for item in store.page(number).cases]
    assert once == [item.id for number in (1, 2, 3) for item in store.page(number).cases]
    assert len(set(once)) == 60


@pytest.mark.parametrize("number", [0, -1, 2])
def test_pages_that_do_not_exist_are_refused(store: CaseStore, number: int) -> None:
    assert store.page(1).cases == ()
    with pytest.raises(PageError):
        store.page(number)


def test_strange_keys_and_lost_cases_are_neither_shown_nor_counted(store: CaseStore, redis_server: RedisServer) -> None:
    store.add_many(case(number) for number in range(27))
    with redis_server.client() as client:
        client.hset("person1.jpeg", mapping={"prediction": "Pneumonia", "confidence": "0.5"})
        client.hset("lightbox:case:strange", mapping={"id": "strange", "label": "Normal"})
        client.zadd(INDEX, {"strange": NOW.timestamp() + 10})
        client.delete("lightbox:case:case-0003")
    page = store.page()
    assert (page.total, page.pages, len(page.cases)) == (25, 1, 25) or (page.total, len(page.cases)) == (26, 25)
    assert "strange" not in [item.id for item in page.cases]
    assert [item.id for number in range(1, page.pages + 1) for item in store.page(number).cases] == [
        f"case-{number:04d}" for number in range(27) if number != 3
    ]


def test_storing_again_replaces(store: CaseStore) -> None:
    store.add(case(1))
    store.add(case(1, label="Pneumonia", created=NOW))
    assert store.page().total == 1
    assert store.page().cases[0].label == "Pneumonia"


def test_deleting_takes_a_case_out_of_the_pages(store: CaseStore) -> None:
    store.add_many([case(1), case(2)])
    assert store.delete("case-0001") is True
    assert store.delete("case-0001") is False
    assert [item.id for item in store.page().cases] == ["case-0002"]


def test_old_cases_go_after_the_retention(redis_server: RedisServer) -> None:
    store = CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD, retention=timedelta(days=30))
    store.add(case(1), b"a picture")
    forever = CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)
    forever.add(case(2, created=NOW - timedelta(days=31)))
    assert [item.id for item in store.page().cases] == ["case-0001"]
    with redis_server.client() as client:
        left = timedelta(seconds=client.ttl("lightbox:case:case-0001"))
        assert timedelta(days=29, hours=23) < left < timedelta(days=31)
        assert abs(client.ttl("lightbox:image:case-0001") - left.total_seconds()) < 5
        assert client.ttl("lightbox:case:case-0002") == -1


def test_writers_at_once_lose_nothing(store: CaseStore) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 25):
            store.add(case(number))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.page().total == 100


def test_failures_say_why_without_secrets(redis_server: RedisServer) -> None:
    wrong = CaseStore.connect("127.0.0.1", redis_server.port, "api", "not-the-password")
    with pytest.raises(StoreError, match="refused the user or password") as found:
        wrong.add(case(1))
    assert "not-the-password" not in str(found.value)
    # The API's user may not touch what is not ours, so a case can never overwrite it.
    with pytest.raises(Exception, match="permission"):
        CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)._redis.get("person1.jpeg")


def test_a_restart_of_redis_is_survived(redis_server: RedisServer) -> None:
    store = CaseStore.connect("127.0.0.1", redis_server.port, "api", PASSWORD)
    store.add(case(1))
    redis_server.stop()
    with pytest.raises(StoreError, match="cannot be reached"):
        store.page()
    with pytest.raises(StoreError, match="cannot be reached"):
        store.ping()
    redis_server.start()
    store.ping()
    assert store.page().total == 1, "the append-only file keeps cases over a kill -9"


def test_the_password_comes_from_files_only(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("from-systemd\n")
    (tmp_path / "named").write_text("from-file\n")
    both = {"CREDENTIALS_DIRECTORY": str(tmp_path), "LIGHTBOX_REDIS_PASSWORD_FILE": str(tmp_path / "named")}
    assert read_password(both) == "from-file"
    assert read_password({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "from-systemd"
    assert read_password({}) is None
    with pytest.raises(StoreError, match="cannot be read"):
        read_password({"LIGHTBOX_REDIS_PASSWORD_FILE": str(tmp_path / "absent")})


def test_a_case_that_makes_no_sense_is_refused() -> None:
    for changes in ({"confidence": float("nan")}, {"confidence": 1.2}, {"id": ""}, {"created": datetime(2026, 1, 1)}):
        with pytest.raises(ValueError):
            case(1, **changes)


def test_an_identity_depends_on_where_parts_begin() -> None:
    assert identity("a", "bc") != identity("ab", "c")
    assert identity("a", b"b") == identity("a", "b")
