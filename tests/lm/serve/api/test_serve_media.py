"""Images in /v1/chat/completions: answers are those of transformers; what a server does not take is one clear line."""

import base64
import concurrent.futures
import gc
import json
import sqlite3
import threading

import httpx
import openai
import pytest

from data.media import images as decoding
from lm.convert.multimodal.processor import towers_of
from lm.infer.engine.open import open_engine
from lm.infer.engine.room import Capacity
from lm.serve import page
from lm.serve.api import media
from lm.serve.api.service import Limits, Service
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings
from tests.data.media.pictures import picture, saved
from tests.data.media.test_images import png
from tests.lm.serve import test_chat_page as chat_page
from tests.lm.serve import vision_model
from tests.lm.serve.conftest import client_of, serving, until

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick")
FIRST, SECOND = picture(20, 30), picture(24, 12, 1)
COUNT = 12


def url(file: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file).decode()}"}}


def user(*parts) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}


TALKS = {
    "none": ([user("Is it a cat?")], []),
    "one": ([user(url(saved(FIRST)), "Is it a cat?")], [FIRST]),
    "two": ([user("This: ", url(saved(FIRST)), " and this: ", url(saved(SECOND)), "?")], [FIRST, SECOND]),
    "turns": (
        [user(url(saved(SECOND)), "Is it?"), {"role": "assistant", "content": "No."}, user(url(saved(FIRST)), "So?")],
        [SECOND, FIRST],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vision_model.save_vision_model(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def expected(folder):
    def plain(message):
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        return message | {"content": [part if part["type"] == "text" else {"type": "image"} for part in parts]}

    return {
        name: vision_model.greedy_answer(folder, list(map(plain, messages)), images, COUNT)
        for name, (messages, images) in TALKS.items()
    }


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """(URL, service, folder of the store)."""
    engine = open_engine(folder, Capacity(rows=4, budget=16, pages=200))
    limits = Limits(timeout=60.0, max_media=2, media_bytes=50_000)
    service = Service(engine, "tiny", limits=limits, towers=towers_of(folder, engine.config, engine.tokenizer))
    store = tmp_path_factory.mktemp("watch")
    settings = WatchSettings(status_seconds=0, store_share=1.0)
    service.watch = Watch(settings, store, engine, model_name="tiny", checkpoint=lambda: "step 1")
    with serving(service, routers=[page.router(service)]) as address:
        yield address, service, store
    service.watch.close()
    engine.close()


@pytest.fixture(scope="module")
def client(served):
    return client_of(served[0])


def ask(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=COUNT, **options)


def answer(client, name: str) -> str:
    return ask(client, TALKS[name][0]).choices[0].message.content


def refused(client, messages) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages)
    assert caught.value.body["param"] == "messages" and caught.value.body["type"] == "invalid_request_error"
    assert "\n" not in caught.value.body["message"]
    return caught.value.body["message"]


def test_answers_are_those_of_transformers(client, expected):
    assert len(set(expected.values())) == len(TALKS)
    for name in TALKS:
        assert answer(client, name) == expected[name]
        streamed = ask(client, TALKS[name][0], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected[name]


def test_concurrent_requests(client, served, expected):
    names = [*TALKS] * 3
    with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
        assert list(threads.map(lambda name: answer(client, name), names)) == [expected[name] for name in names]
    several = ask(client, TALKS["one"][0], n=3)
    assert [choice.message.content for choice in several.choices] == [expected["one"]] * 3
    # The memory of media is free again, as soon as the engine's thread has left the last step.
    until(lambda: gc.collect() is not None and served[1].media._bytes == 0)


@pytest.mark.parametrize(
    "part, words",
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "is not fetched, and only files"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "is not fetched, and only"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "is not fetched, and only"),
        ({"type": "image_url", "image_url": {}}, "no url in it"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "is not base64"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, "audio for a model that"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "known are text, image_url, input_audio"),
        (url(b"no image"), "part 1: the image: no image of the formats"),
        (url(saved(FIRST)[:200]), "a damaged image"),
        (url(png(100_000, 10)), "an image of 100,000 × 10 pixels"),
        (url(png(30_000, 30_000)), "pixels"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,plain"}}, "is no data: URL in base64"),
        (url(saved(FIRST) * 30), "bytes of images and sound, and this server takes 50,000"),
    ],
)  # fmt: skip
def test_what_is_not_taken(client, part, words):
    assert words in refused(client, [user(part, "What?")])


def test_limits(client, monkeypatch, served):
    small = url(saved(FIRST))
    with monkeypatch.context() as patch:
        patch.setattr(media, "MEMORY", 1000)
        with pytest.raises(openai.RateLimitError, match="no room for more images"):
            ask(client, [user(small)])
    assert "3 images and sounds, and this server takes 2" in refused(client, [user(small, small, small)])
    system = {"role": "system", "content": [small]}
    assert "only messages of the user" in refused(client, [system, user("a")])
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    assert "30 × 20 pixels, and it may have 100" in refused(client, [user(small)])


def test_a_slow_image_does_not_hold_up_others(client, served, monkeypatch, expected):
    begun, go = threading.Event(), threading.Event()
    real = decoding.decode

    def slow(data, where):
        begun.set()
        go.wait(60)
        return real(data, where)

    monkeypatch.setattr(decoding, "decode", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(answer, client, "one") for _ in range(4)]
        begun.wait(60)
        assert answer(client, "none") == expected["none"]
        assert httpx.get(f"{served[0]}/health").status_code == 200
        go.set()
        assert {one.result() for one in waiting} == {expected["one"]}


def test_the_store_has_a_note(client, served):
    answer(client, "two")
    served[1].watch.flush()
    rows = [str(row) for row in sqlite3.connect(served[2] / "exchanges.sqlite").execute("select * from exchanges")]
    noted = [row for row in rows if "and this" in row]
    assert noted and f"[image: {len(saved(FIRST))} bytes, sha256 " in noted[-1]
    assert not any("base64" in row or "\ufdd0" in row for row in rows)


def test_tokens_of_an_image(served):
    body = {"messages": TALKS["one"][0]}
    found = httpx.post(f"{served[0]}/tokenize", json=body).json()
    image = served[1].engine.config.vision.token_id
    assert found["tokens"].count(image) == 5 * vision_model.TOKENS


def test_what_a_model_of_text_says(url):
    found = httpx.post(f"{url}/v1/chat/completions", json={"messages": TALKS["one"][0]})
    assert found.status_code == 400 and found.json()["error"]["param"] == "messages"
    assert "message 1, part 1: image for a model that reads text and no images or sound" in found.json()["error"]["message"]


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_the_page_sends_an_image(browser, served, expected, way):
    chat_page.visit(browser, served[0])
    chat_page.settings(browser, temperature=0, max_tokens=COUNT)
    name = "<b>a</b>.png"
    browser.run(
        f"""(() => {{
        const bytes = Uint8Array.from(atob({json.dumps(base64.b64encode(saved(FIRST)).decode())}), (c) => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], {json.dumps(name)}, {{ type: "image/png" }}));
        const [main, text, files] = ["main", "#text", "#files"].map((one) => document.querySelector(one));
        const dropped = new DragEvent("drop", {{ dataTransfer: given, cancelable: true }});
        if ({json.dumps(way)} === "drop") main.dispatchEvent(dropped);
        else if ({json.dumps(way)} === "paste") text.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: given }}));
        else {{
          files.files = given.files;
          files.dispatchEvent(new Event("change"));
        }}
        }})()"""
    )
    chat_page.see(browser, "document.querySelector('#chosen img')?.naturalWidth === 30")
    chat_page.write(browser, "Is it a cat?")
    chat_page.answer(browser)
    assert browser.run("document.querySelector('article.user .media img').alt") == name
    assert browser.run("document.querySelector('#chosen').hidden")
    sent, said = chat_page.kept(browser)
    assert said["content"] == expected["one"] and sent["media"][0]["kind"] == "image"
    browser.visit(served[0], 1280)  # the image is there again
    chat_page.see(browser, "document.querySelector('article.user .media img')?.naturalWidth === 30")
    assert not browser.said
