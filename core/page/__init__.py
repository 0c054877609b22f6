"""The web page that the balancer shows a browser: plain HTML, CSS and JavaScript modules, served as they lie here.

    files.py       serves all of them, with the headers that keep foreign code out
    page.html      the frame: header, the three views, dialogs
    page.css       how it looks: wide, narrow, light, dark
    page.js        starts everything; which view is shown

    now.js         the view Now: a sentence, charts, backends, what has happened
    chart.js       one chart of the last ten minutes, as SVG
    admin.js       drain, restart, add: with the admin key
    chat.js        the view Chat: conversations, settings, the composer
    messages.js    messages on the screen
    answers.js     one streamed answer
    threads.js     conversations: a tree of messages each, kept in the browser
    settings.js    model, system prompt and sampling, shared by Chat and Try it
    markdown.js    Markdown to DOM nodes, never by way of HTML
    tryit.js       the view Try it: curl, Python and openai lines

    feed.js        the balancer's feed, /events, while the page is seen
    http.js        requests with the key, which is kept for the tab; server-sent events
    dom.js         makes elements, dialogs, blocks of code
    words.js       the words, by the browser's language (english.js, japanese.js); numbers and times

What a model or a backend says is hostile: it becomes text nodes. Nothing here sets innerHTML, and the browser is told
to refuse it (Content-Security-Policy: require-trusted-types-for). Paths are relative, so that the page works behind a
proxy that puts a prefix before them. A browser loads less than 80 kB, unpacked: a test holds it. The scripts are
formatted as by `prettier --print-width 120 --use-tabs --arrow-parens avoid`.
"""
