"""The chat page in a headless Chromium, before a server with a tiny model in this process."""

import contextlib
import hashlib
import json

import httpx
import pytest
from flax import nnx

from data.chat.conversations import read_examples
from data.chat.messages import Conversation
from lm.adapt import lora
from lm.config import Adapter
from lm.convert.peft import export_peft
from lm.infer.engine.adapters import Slots
from lm.serve import page
from lm.serve.api.app import Settings
from lm.serve.api.service import Limits, Service
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings
from lm.serve.store import connect
from tests.lm.serve.api.test_serve_thoughts import OPENS
from tests.lm.serve.conftest import CONFIG, client_of, engine_of, held, model_of, serving, until

ANSWERED = "!!document.querySelector('article.assistant[aria-busy=false]')"
NOISE = "Failed to load resource"  # Chromium's own line about a status of 400 and more


@pytest.fixture(scope="module")
def own(tokenizer):
    engine = engine_of(tokenizer)
    engine.warm()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def served(own, tmp_path_factory):
    """(URL, folder of the store)."""
    service, folder = Service(own, "tiny", limits=Limits(timeout=60.0)), tmp_path_factory.mktemp("watch")
    settings = WatchSettings(status_seconds=0)
    service.watch = Watch(settings, folder, own, model_name="tiny", checkpoint=lambda: "step 1")
    with serving(service, routers=[page.router(service)]) as url:
        yield url, folder
    service.watch.close()


@pytest.fixture
def opened(browser, served):
    """The browser at a page without conversations; a test must leave no error on its console."""
    visit(browser, served[0])
    yield browser
    assert not browser.said
    assert all(address.startswith((served[0], "data:")) for address in browser.asked)


def visit(browser, url, width=1280, scheme="light"):
    browser.visit(url, width)
    browser.run("localStorage.clear(), sessionStorage.clear()")
    browser.said.clear(), browser.asked.clear()
    found = browser.visit(url, width, scheme=scheme)
    see(browser, "document.querySelector('#model').value || !document.querySelector('#key').hidden")
    return found


def see(browser, script: str):
    """Return what the script says as soon as it is true."""
    found = []

    def there():
        found[:] = [browser.run(script)]
        return found[0]

    until(there)
    return found[0]


def write(browser, text: str, where: str = "#text") -> None:
    browser.run(f"document.querySelector('{where}').focus()")
    browser.run(f"document.querySelector('{where}').value = {json.dumps(text)}")
    browser.press("Enter")


def settings(browser, **values) -> None:
    for name, value in values.items():
        field = f"document.getElementById('options')[{json.dumps(name)}]"
        browser.run(f"{field}.value = {json.dumps(str(value))}")
        browser.run(f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def answer(browser) -> str:
    see(browser, ANSWERED)
    return browser.run("[...document.querySelectorAll('article.assistant .said')].at(-1).textContent")


def click(browser, label: str) -> None:
    browser.run(f"[...document.querySelectorAll('main [aria-label={json.dumps(label)}]')].at(-1).click()")


def kept(browser) -> list:
    """The messages of the newest conversation in the browser's storage."""
    chats = browser.run("Object.keys(localStorage).filter(k => k.includes('.chat.')).map(k => JSON.parse(localStorage[k]))")
    return max(chats, key=lambda chat: chat["changed"])["messages"]


def test_a_conversation_streams(opened, served, own):
    settings(opened, temperature=0, max_tokens=30, system="Be brief.")
    with held(own):
        write(opened, "the cat")
        see(opened, "!!document.querySelector('article.assistant[aria-busy=true]')")
        assert opened.run("document.querySelector('article.user .said').textContent") == "the cat"
    answer(opened)
    first = kept(opened)
    told = [{"role": "system", "content": "Be brief."}, first[0]]
    asked = {"messages": told, "temperature": 0, "max_tokens": 30}
    said = httpx.post(f"{served[0]}/v1/chat/completions", json=asked, timeout=60).json()
    assert first[1]["content"] == said["choices"][0]["message"]["content"]
    assert first[1]["finish"] == said["choices"][0]["finish_reason"]
    assert first[1]["count"] == said["usage"]["completion_tokens"] and 0 < first[1]["first"] <= first[1]["seconds"]
    facts = opened.run("document.querySelector('article.assistant .meta').textContent")
    assert f"{first[1]['count']} tokens · " in facts and "tokens/s" in facts and "first after" in facts
    write(opened, "the hat")
    see(opened, "document.querySelectorAll('article.assistant[aria-busy=false]').length === 2")
    assert [message["role"] for message in kept(opened)] == ["user", "assistant"] * 2
    opened.visit(served[0], 1280)  # the conversation is there again
    see(opened, "document.querySelectorAll('article').length === 4")


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_ends_the_request_in_the_engine(opened, own, by, monkeypatch):
    cancelled, handles, submit = own.stats().finished.get("cancelled", 0), [], own.submit

    def noted(request, tell):
        handles.append(submit(request, tell))
        return handles[-1]

    monkeypatch.setattr(own, "submit", noted)
    settings(opened, temperature=0)  # drawn, its first token may end the answer, in the step that `held` lets pass
    with held(own):
        write(opened, "the cat")
        until(lambda: own.stats().running + own.stats().waiting == 1)
        click(opened, "Stop") if by == "button" else opened.press("Escape")
        see(opened, ANSWERED)
        until(lambda: handles[0].gone(0.0))  # the server has seen that the page has gone
    until(lambda: own.stats().running == own.stats().waiting == 0)
    assert own.stats().finished.get("cancelled", 0) == cancelled + 1
    assert kept(opened)[1]["finish"] == "stopped"
    assert opened.run("document.querySelector('#send').getAttribute('aria-label')") == "Send"


def test_answer_again_and_edit(opened):
    settings(opened, temperature=0, max_tokens=12)
    write(opened, "the cat")
    first = answer(opened)
    click(opened, "Answer again")
    see(opened, ANSWERED)
    assert answer(opened) == first and len(kept(opened)) == 2
    settings(opened, temperature=1.5, seed=3)
    click(opened, "Answer again")
    assert answer(opened) != first
    click(opened, "Edit and send again")
    write(opened, "def add", "article.user textarea")
    see(opened, f"{ANSWERED} && document.querySelector('article.user .said')?.textContent === 'def add'")
    assert [message["content"] for message in kept(opened)][:-1] == ["def add"]


def test_probabilities_of_tokens(opened):
    settings(opened, temperature=0, max_tokens=12)
    opened.run("document.querySelector('#likely').click()")
    write(opened, "the cat")
    content = answer(opened)
    spans = opened.run("[...document.querySelectorAll('.tokens span')].map(span => span.textContent)")
    assert "".join(spans) == content and 1 < len(spans) <= 12
    box = opened.run("document.querySelector('.tokens span').getClientRects()[0].toJSON()")
    opened.hover(box["left"] + 1, box["top"] + 9)
    rows = see(opened, "[...document.querySelectorAll('#tip tbody tr')].map(row => [row.className, row.lastChild.textContent])")
    (token,) = kept(opened)[1]["tokens"][:1]
    assert len(rows) == 7 and rows[-1][0] == "others"
    assert [
        "chosen",
        f"{100 * 2.718281828459045 ** token[2]:.1f} %",
    ] in rows  # ids without a token, which are never drawn, may be likelier
    opened.run("document.querySelector('.tokens').focus()")
    opened.press("ArrowRight")
    assert opened.run("[...document.querySelectorAll('.tokens span')].findIndex(span => span.matches('.here'))") == 1
    opened.press("Escape")
    assert opened.run("document.querySelector('#tip').hidden")


def test_a_thought_is_folded(browser, own):
    service = Service(own, "tiny", template=OPENS)  # it opens a thought, which the random model does not end
    with serving(service, routers=[page.router(service)]) as url:
        visit(browser, url)
        settings(browser, temperature=0, max_tokens=20)
        write(browser, "the cat")
        see(browser, ANSWERED)
        (_, said) = kept(browser)
        assert said["thought"] and not said["content"]
        assert browser.run("document.querySelector('details.thought > div').textContent") == said["thought"]
        assert not browser.run("document.querySelector('details.thought').open")
    assert not browser.said


def test_a_rating_is_stored(opened, served):
    settings(opened, max_tokens=5)
    write(opened, "the cat")
    answer(opened)
    click(opened, "Bad answer")
    write(opened, "It is wrong.", ".rating textarea")
    see(opened, "document.querySelector('[aria-label=\"Bad answer\"]').getAttribute('aria-pressed') === 'true'")
    with contextlib.closing(connect(served[1] / "exchanges.sqlite")) as file:
        rows = file.execute("SELECT exchange, rating, comment FROM feedback").fetchall()
    assert [tuple(row) for row in rows] == [(kept(opened)[1]["id"], -1, "It is wrong.")]


def test_conversations_export_for_training_and_are_deleted(opened, tmp_path):
    settings(opened, temperature=0, max_tokens=5, system="Be brief.")  # drawn tokens may be nothing but ends
    write(opened, 'say "<b>hat</b>"\n→')
    answer(opened)
    messages = kept(opened)
    opened.run("document.querySelector('#new').click()")
    write(opened, "the mat")
    answer(opened)
    opened.download_to(tmp_path)
    opened.run("document.querySelector('#export').click()")
    file = tmp_path / "conversations.jsonl"
    until(lambda: file.is_file() and file.read_text().count("\n") == 2)
    examples = list(read_examples(str(file), "conversation", "train", valid_fraction=0.0, seed=0))
    assert all(isinstance(example, Conversation) for example in examples)
    told = [message["content"] for message in examples[1].messages]
    assert told == ["Be brief.", *(message["content"] for message in messages)]
    for left in (1, 0):
        opened.run("document.querySelector('#list [aria-label=Delete]').click()")
        assert opened.run("document.querySelectorAll('#list li').length") == left
    assert not opened.run("Object.keys(localStorage).filter(key => key.includes('.chat.')).length")
    opened.run("document.querySelector('#toast button').click()")  # undo
    assert opened.run("document.querySelectorAll('#list li').length") == 1


MARKDOWN = """# Head
A **bold** and *soft* `code <b>` word, 2 * 3 * 4, snake_case_name, <img src=x onerror=alert(1)> [a](javascript:alert(1))

1. one
   - deep **er**
2. two
more

> said

```python
if a < b:

    **not bold**
```
the end **open"""


def test_markdown_becomes_elements_and_html_stays_text(opened):
    said = opened.run(f"""(async () => {{
      const {{ render }} = await import("/chat_markdown.js");
      const [whole, grown] = [document.createElement("div"), document.createElement("div")];
      const text = {json.dumps(MARKDOWN)};
      render(whole, text);
      for (let length = 0; length <= text.length; length++) render(grown, text.slice(0, length));
      const long = document.createElement("div");
      render(long, "**a `b *c _d ".repeat(5000));
      const safe = {{}};
      for (const tag of ["h3", "strong", "em", "code", "ol > li", "li li", "blockquote p", "pre", "img", "a", "b"])
        safe[tag] = [...whole.querySelectorAll(tag)].map((one) => one.textContent);
      try {{ whole.innerHTML = "<b>x</b>"; safe.html = "taken"; }} catch (error) {{ safe.html = error.name; }}
      return {{ ...safe, same: whole.isEqualNode(grown), text: grown.textContent }};
    }})()""")
    assert said["h3"] == ["Head"] and said["strong"] == ["bold", "er"] and said["em"] == ["soft"]
    assert said["code"] == ["code <b>", "if a < b:\n\n    **not bold**"] and said["ol > li"] == ["onedeep er", "two\nmore"]
    assert said["li li"] == ["deep er"] and said["blockquote p"] == ["said"] and len(said["pre"]) == 1
    assert said["img"] == said["a"] == said["b"] == [] and said["same"]
    assert "2 * 3 * 4, snake_case_name, <img src=x onerror=alert(1)> [a](javascript:alert(1))" in said["text"]
    assert said["html"] == "TypeError"  # the policy of the page lets no text become HTML
    opened.said.clear()  # Chromium's line about it


def test_a_refusal_says_what_to_do(opened):
    settings(opened, max_tokens=5000)
    write(opened, "the cat")
    text = see(opened, "document.querySelector('.fault')?.textContent")
    assert "together more than the 1024 of the model." in text and "Start a new conversation" in text
    settings(opened, temperature=0, max_tokens=5)
    opened.run("document.querySelector('.fault button').click()")
    assert answer(opened) and not opened.run("document.querySelector('.fault')")
    opened.said[:] = [line for line in opened.said if NOISE not in line]


def test_a_server_with_keys_without_a_store_and_when_it_is_gone(browser, own):
    service = Service(own, "tiny", limits=Limits(timeout=60.0))
    keys = {"one": hashlib.sha256(b"secret").digest()}
    with serving(service, Settings(keys=keys), [page.router(service)]) as url:
        visit(browser, url)
        assert not browser.run("document.querySelector('#key').hidden")
        write(browser, "secret", "#key-text")
        see(browser, "document.querySelector('#model').value === 'tiny' && document.querySelector('#key').hidden")
        settings(browser, max_tokens=5)
        write(browser, "the cat")
        answer(browser)
        assert browser.run("[...document.querySelectorAll('article [aria-label$=answer]')].every(button => button.hidden)")
        assert "secret" not in browser.run("JSON.stringify(localStorage)")
    write(browser, "the hat")
    fault = see(browser, "document.querySelector('.fault')?.textContent")
    assert "The server does not answer. See that serve.py still runs" in fault
    assert all(NOISE in line for line in browser.said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(browser, served, width, scheme):
    found = visit(browser, served[0], width, scheme)
    assert found["scroll"] == 0 and found["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    browser.run("document.querySelector('#likely').click()")
    settings(browser, max_tokens=200, temperature=1)
    write(browser, "a" * 200)
    answer(browser)
    wide = "Math.max(document.documentElement.scrollWidth, document.querySelector('#scroll').scrollWidth - 20) - innerWidth"
    for panel in ("settings", "side"):
        browser.run(f"document.querySelector('[data-open={panel}]').click()")
        assert browser.run(wide) <= 0
        assert browser.run(f"document.querySelector('#{panel}').getBoundingClientRect().right") <= width
        browser.press("Escape")
    assert browser.run("document.querySelector('#settings').hidden")
    assert not browser.said


def test_the_page_is_confined(served):
    answered = httpx.get(served[0])
    policy = answered.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "<script>" not in answered.text and " style=" not in answered.text and " onclick" not in answered.text
    for path, kind in {"chat.js": "text/javascript", "chat.css": "text/css"}.items():
        assert httpx.get(f"{served[0]}/{path}").headers["content-type"].startswith(kind)
    assert httpx.get(f"{served[0]}/chat.html").status_code == 404


@pytest.mark.parametrize("width", [1280, 390])
def test_two_models_answer_side_by_side_and_each_sees_its_own_answers(browser, tokenizer, tmp_path, width):
    config, adapted = lora.with_adapter(CONFIG, nnx.split(model_of(0))[1], Adapter(rank=2), seed=1)
    adapted = nnx.map_state(lambda path, x: x.replace(x[...] + 0.3) if path[-1] == "lora_b" else x, adapted)
    export_peft(tmp_path / "shift", config, adapted)
    engine = engine_of(tokenizer, slots=Slots(1, 2, ".*"))
    service = Service(engine, "tiny", adapter_dir=tmp_path, sampling={"top_p": 0.9})
    service.load_adapter("shift", None)
    with serving(service, routers=[page.router(service)]) as url:
        found = visit(browser, f"{url}/?beside=shift", width)
        assert browser.run("document.querySelector('[name=top_p]').placeholder") == "0.9"  # the server's own
        settings(browser, temperature=0, max_tokens=12)
        for n, text in enumerate(("the cat", "the hat"), start=1):
            write(browser, text)
            see(browser, f"document.querySelectorAll('article.assistant[aria-busy=false]').length === {n}")
        client = client_of(url)
        messages = kept(browser)
        for model, own in (("tiny", lambda message: message), ("shift", lambda message: message["beside"])):
            asked = []
            for question, reply in zip(messages[::2], messages[1::2], strict=True):
                asked.append({"role": "user", "content": question["content"]})
                said = client.chat.completions.create(model=model, messages=asked, temperature=0, top_p=0.95, max_tokens=12)
                assert own(reply)["content"] == said.choices[0].message.content
                asked.append({"role": "assistant", "content": own(reply)["content"]})
        names = browser.run("[...document.querySelectorAll('article.assistant h3')].map(name => name.textContent)")
        assert names == ["tiny", "shift"] * 2 and found["scroll"] <= 0 and not browser.said
    engine.close()
