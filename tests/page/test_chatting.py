"""The web page's chat in a real browser: answers as they come, branches, hostile output, a backend that is killed."""

import json
import os
import signal

import pytest
from conftest import LASTING_OPTIONS, PATIENCE, RAMBLE, Program, call, free_ports, wait_until

from page.browsing import USAGE, answers, ask, playwright, see


@pytest.fixture
def chat(front, visit):
    return visit(front().url, "chat")


def shown(page):
    return [each.strip() for each in page.locator(".message .prose:visible").all_inner_texts()]


def done(page):
    see(page.locator("#send"), "Send")


def thought(text):
    return {"choices": [{"delta": {"reasoning_content": text}}]}


def test_words_are_shown_as_they_come_and_what_they_cost_in_the_end(chat, talker):
    ask(chat, "Tell me\n a story")
    for word in ("Once ", "upon ", "a time"):
        talker.say(word)
        see(answers(chat), word.strip())
    assert chat.locator(".running").count() == 1
    talker.say(USAGE, None)
    done(chat)
    backend = talker.url[len("http://") :]
    for part in ("m.gguf", backend, "17 tokens", "12.5 tokens/s", "25 of 40 prompt tokens from cache"):
        see(chat.locator(".assistant .meta"), part)
    assert talker.asked[0]["messages"] == [{"role": "user", "content": "Tell me\n a story"}]
    ask(chat, "more")
    talker.say("more", None)
    see(answers(chat).last, "more")
    contents = [each["content"] for each in talker.asked[1]["messages"]]
    assert contents == ["Tell me\n a story", "Once upon a time", "more"]


def test_stop_ends_the_answer_and_keeps_what_is_there(chat, talker):
    for stop in (lambda: chat.click("#send"), lambda: chat.keyboard.press("Escape")):
        ask(chat, "go on")
        talker.say("for ever ")
        see(answers(chat).last, "for ever")
        see(chat.locator("#send"), "Stop")
        stop()
        done(chat)
        assert talker.left.get(timeout=PATIENCE)
        see(answers(chat).last, "for ever")
        assert not chat.locator(".problem").count()


def test_regenerating_and_editing_make_branches(chat, talker):
    talker.say("first", None, "second", None, "third", None)
    ask(chat, "a question")
    see(answers(chat), "first")
    done(chat)
    chat.get_by_role("button", name="Regenerate").click()
    see(answers(chat), "second")
    done(chat)
    see(answers(chat), "2/2")
    chat.get_by_role("button", name="Earlier version").click()
    see(answers(chat), "first")
    chat.get_by_role("button", name="Edit").click()
    chat.fill(".edit textarea", "another question")
    chat.locator(".edit .main").click()
    see(answers(chat), "third")
    done(chat)
    assert [each["messages"][-1]["content"] for each in talker.asked] == ["a question"] * 2 + ["another question"]
    chat.locator(".user").get_by_role("button", name="Earlier version").click()
    assert shown(chat) == ["a question", "first"]


def test_conversations_stay_in_the_browser_and_go_out_and_in_as_json(chat, talker, tmp_path):
    talker.say(thought("hm"), "kept", USAGE, None)
    ask(chat, "keep this")
    see(answers(chat), "kept")
    done(chat)
    chat.reload()
    chat.locator(".thread").click()
    see(answers(chat), "kept")
    with chat.expect_download() as download:
        chat.get_by_role("button", name="Export").click()
    file = str(tmp_path / "kept.json")
    download.value.save_as(file)
    chat.locator(".cut").click()
    chat.locator("dialog .main").click()
    playwright.expect(chat.locator(".thread")).to_have_count(0)
    chat.set_input_files("input[type=file]", file)
    see(answers(chat), "kept")
    see(chat.locator(".assistant .meta"), "12.5 tokens/s")
    with open(file, encoding="utf-8") as exported:
        stored = json.load(exported)
    assert stored["comeapi"] == "conversations" and len(stored["conversations"]) == 1
    stored["conversations"][0]["nodes"] = {"x": {"id": "<img src=x>", "role": "system", "text": 7}, "y": None}
    for strange in (stored, [], {"comeapi": "conversations", "conversations": [None, 7]}, {"conversations": [{}]}):
        (tmp_path / "strange.json").write_text(json.dumps(strange))
        chat.set_input_files("input[type=file]", str(tmp_path / "strange.json"))
        see(chat.locator("#composer .notice"), "conversations")
    playwright.expect(chat.locator(".thread")).to_have_count(1)


def test_settings_go_with_each_request_and_stay(chat, talker):
    chat.get_by_role("button", name="Settings").click()
    chat.fill("#system", "Be brief.")
    for name, value in (("temperature", "0.2"), ("top_p", "0.9"), ("top_k", "5"), ("max_tokens", "99"), ("seed", "1")):
        chat.fill("#set-" + name, value)
    chat.fill("#set-top_k", "-5")  # no such value: it is left to the server
    chat.reload()
    talker.say("ok", None)
    ask(chat, "hello")
    see(answers(chat), "ok")
    asked = talker.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."} and "top_k" not in asked
    assert [asked[name] for name in ("temperature", "top_p", "max_tokens", "seed")] == [0.2, 0.9, 99, 1]


def test_reasoning_is_folded(chat, talker):
    talker.say(thought("let me "), thought("see"), "42", None)
    ask(chat, "what is it?")
    see(answers(chat), "42")
    done(chat)
    assert shown(chat)[-1] == "42"
    chat.locator(".reasoning summary").click()
    assert "let me see" in shown(chat)


def test_enter_in_an_input_method_does_not_send(chat, talker):
    chat.fill("#input", "にほんご")
    for how in ("isComposing: true", "keyCode: 229"):
        event = "new KeyboardEvent('keydown', {key: 'Enter', %s})" % how
        chat.evaluate("document.getElementById('input').dispatchEvent(%s)" % event)
    chat.keyboard.press("Shift+Enter")
    assert chat.input_value("#input") == "にほんご\n" and not talker.asked


def test_a_failure_is_told_and_the_question_can_be_asked_again(chat, talker):
    talker.say("half", {"error": {"message": "out of luck"}})
    ask(chat, "hello")
    see(chat.locator(".problem"), "out of luck")
    see(answers(chat), "half")
    done(chat)
    assert talker.left.get(timeout=PATIENCE)
    talker.say("whole", None)
    chat.get_by_role("button", name="Regenerate").click()
    see(answers(chat), "whole")


# ---- what a model writes

HOSTILE = """<img src=x onerror="window.pwned=1"> <script>window.pwned=1</script> <style>body{display:none}</style>
<iframe src="javascript:window.pwned=1"></iframe> [click](javascript:window.pwned=1)
[data](data:text/html,<script>1</script>)
![picture](http://127.0.0.1:9/secret.png) **<b onclick="window.pwned=1">bold</b>**
[good](https://example.com/"onmouseover="x)
http://example.com/<script> javascript:window.pwned=1

| <img src=x onerror=window.pwned=1> | b |
|---|---|
| [x](vbscript:x) | <svg onload=window.pwned=1> |

```<script>window.pwned=1</script>
</code></pre><script>window.pwned=1</script>
```
<a href="javascript:window.pwned=1">a</a> &lt;script&gt; \u202e reversed \u0000
"""


def test_no_markup_of_a_model_gets_through(chat, talker):
    talker.say(*[HOSTILE[at : at + 7] for at in range(0, len(HOSTILE), 7)])
    talker.say(thought(HOSTILE), {"model": "<img src=x onerror=window.pwned=1>", "choices": []}, None)
    ask(chat, HOSTILE.replace("\n", " "))
    done(chat)
    assert chat.evaluate("window.pwned") is None
    made = "img, script, style, iframe, svg, object, embed, form, base, link, meta, [onerror], [onclick]"
    assert chat.locator(".message :is(%s)" % made).count() == 0
    links = chat.locator(".message a")
    told = links.evaluate_all("(all) => all.map((a) => [new URL(a.href).protocol, a.rel, a.target])")
    assert {each[0] for each in told} == {"http:", "https:"}
    assert {tuple(each[1:]) for each in told} == {("noopener noreferrer nofollow", "_blank")}
    assert "<script>window.pwned=1</script>" in answers(chat).inner_text()  # it is shown as what it is


MARKDOWN = {
    "# Title #": "<h3>Title</h3>",
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "**bold** and *thin* and _thin_": "<p><strong>bold</strong> and <em>thin</em> and <em>thin</em></p>",
    "~~gone~~ ***both***": "<p><del>gone</del> <strong><em>both</em></strong></p>",
    "snake_case_name 2 * 3 * 4 **": "<p>snake_case_name 2 * 3 * 4 **</p>",
    "`a *b*` ``x ` y`` \\*no\\*": "<p><code>a *b*</code> <code>x ` y</code> *no*</p>",
    "- a\n- b\n  1. c\n  2. d\n\n- e": "<ul><li>a</li><li><p>b</p><ol><li>c</li><li>d</li></ol></li><li>e</li></ul>",
    "3. c\n4. d": '<ol start="3"><li>c</li><li>d</li></ol>',
    "> quoted\n> > twice": "<blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "[t](https://a.b/c)": '<p><a href="https://a.b/c">t</a></p>',
    "<https://a.b/>": '<p>&lt;<a href="https://a.b/">https://a.b/</a>&gt;</p>',
    "これは**太字**です。": "<p>これは<strong>太字</strong>です。</p>",
    "https://a.b/です": '<p><a href="https://a.b/">https://a.b/</a>です</p>',
    "1 < 2 & 3": "<p>1 &lt; 2 &amp; 3</p>",
    "*not closed `nor this": "<p>*not closed `nor this</p>",
}
RENDER = """async ([text, again]) => {
  const { render } = await import("./page/markdown.js");
  const element = document.createElement("div");
  const started = performance.now();
  for (let count = 0; count < again; count++) render(element, text + " ".repeat(count));
  const milliseconds = performance.now() - started;
  for (const each of element.querySelectorAll("*"))
    for (const { name } of [...each.attributes]) if (!["href", "start"].includes(name)) each.removeAttribute(name);
  return [element.innerHTML, milliseconds];
}"""


def test_markdown_is_rendered(chat):
    for text, expected in MARKDOWN.items():
        assert chat.evaluate(RENDER, [text, 1])[0] == expected, text


def test_code_and_tables_are_rendered(chat):
    text = "```python\nif x < 1:\n    pass\n```\n\n| a | b |\n|:-:|--:|\n| `x|y` | 2 |\nend"
    html = chat.evaluate(RENDER, [text, 1])[0]
    assert "<span>python</span>" in html and "<code>if x &lt; 1:\n    pass</code>" in html
    assert "<tr><th>a</th><th>b</th></tr>" in html and "<td><code>x|y</code></td><td>2</td>" in html


PIECES = ["*a ", "**", "`", "[", "[a](", "_a_", "> ", "- ", "|", "~~", "http://", "\\", "# ", "``` ", "![", "*_`"]


def test_no_text_hangs_the_page(chat):
    for piece in PIECES + ["  - a\n", "|a\n|-\n"]:
        assert chat.evaluate(RENDER, [piece * (60000 // len(piece)), 1])[1] < 3000, piece


# ---- a backend that dies


def lasting(request):
    """Return a request's body with what lets its answer last until the test has seen it."""
    return json.dumps(dict(request.post_data_json, **dict(RAMBLE, max_tokens=6000)))


def test_a_killed_backend_is_a_pause_and_nothing_else(visit):
    port = free_ports(3)
    options = ["--base-port", port, "--port", port + 2, "--backends", 2, "--slots", 2]
    program = Program("comeapi.py", *options, *LASTING_OPTIONS)
    try:
        program.wait_for_line("🚀")
        url = "http://127.0.0.1:%d" % (port + 2)
        page = visit(url, "chat")
        page.route("**/v1/chat/completions", lambda route: route.continue_(post_data=lasting(route.request)))
        ask(page, "Tell me a very long story.")
        see(page.locator(".assistant .meta"), "127.0.0.1")
        name = page.locator(".assistant .meta span").inner_text()
        os.kill(call("http://%s/health" % name).json["pid"], signal.SIGKILL)
        before = len(answers(page).inner_text())
        wait_until(lambda: len(answers(page).inner_text()) > before + 100)
        page.click("nav a[href='#now']")
        see(page.locator("#happened"), "went on at another backend")
        assert not page.locator(".problem").count()
        page.click("nav a[href='#chat']")
        page.keyboard.press("Escape")
        done(page)
        assert not page.locator(".problem").count()
    finally:
        program.close()
