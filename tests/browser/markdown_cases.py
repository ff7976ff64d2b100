"""What models write, well-meant and not, and how it is shown."""

BLOCKS = [
    ("Plain text", "<p>Plain text</p>"),
    ("One\ntwo", "<p>One<br>two</p>"),
    ("One  \ntwo\\\nthree", "<p>One<br>two<br>three</p>"),
    ("One\n\n\nTwo", "<p>One</p><p>Two</p>"),
    ("# A\n## B ##\n###### C", "<h3>A</h3><h4>B</h4><h6>C</h6>"),
    ("#hash\n#", "<p>#hash</p><h3></h3>"),
    ("*a* _b_ **c** __d__ ***e*** ~~f~~", None),
    ("a * b * c, 2*3*4 and snake_case_name", "<p>a * b * c, 2<em>3</em>4 and snake_case_name</p>"),
    ("**bold *and* more**", "<p><strong>bold <em>and</em> more</strong></p>"),
    ("**never closed", "<p>**never closed</p>"),
    ("*a **b*", "<p>*a *<em>b</em></p>"),
    ("`a *b*` ``c ` d`` `e", "<p><code>a *b*</code> <code>c ` d</code> `e</p>"),
    (r"\*not\* \`this\` \# \q", r"<p>*not* `this` # \q</p>"),
    ("[a](https://example.org)", '<p><a href="https://example.org/">a</a></p>'),
    ('[**a** b](<https://example.org/x> "title")', '<p><a href="https://example.org/x"><strong>a</strong> b</a></p>'),
    ("[a](https://example.org/b_(c)).", '<p><a href="https://example.org/b_(c)">a</a>.</p>'),
    ("[a] [b](c d) [e](/f) [g](#h)", "<p>[a] [b](c d) [e](/f) [g](#h)</p>"),
    ("[a [b](https://example.org) c](https://example.com)", None),
    ("![a picture](https://example.org/i.png)", '<p><a href="https://example.org/i.png">a picture</a></p>'),
    ("![a](data:image/png;base64,AAAA)", "<p>![a](data:image/png;base64,AAAA)</p>"),
    ("<https://example.org/a> <b>", '<p><a href="https://example.org/a">https://example.org/a</a> &lt;b&gt;</p>'),
    (
        "See https://example.org/a(b), (http://example.org).",
        '<p>See <a href="https://example.org/a(b)">https://example.org/a(b)</a>, '
        '(<a href="http://example.org/">http://example.org</a>).</p>',
    ),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("* a\n+ b", "<ul><li>a</li></ul><ul><li>b</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    ("- a\n\n  b\n- c", "<ul><li><p>a</p><p>b</p></li><li><p>c</p></li></ul>"),
    ("- a\n\n- b\n\nc", "<ul><li><p>a</p></li><li><p>b</p></li></ul><p>c</p>"),
    ("- a\nlazy\n\nb", "<ul><li>a<br>lazy</li></ul><p>b</p>"),
    ("- [ ] a\n- [x] b", "<ul><li>☐ a</li><li>☑ b</li></ul>"),
    ("Text:\n- a", "<p>Text:</p><ul><li>a</li></ul>"),
    ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    ("a\n\n---\n***\n- - -", "<p>a</p><hr><hr><hr>"),
    (
        "```js x\nif (a < b) {\n\n}\n```\nc",
        '<div class="code"><div class="code-head"><span>js</span></div><pre tabindex="0" role="group" '
        'aria-label="Code, js"><code>if (a &lt; b) {\n\n}</code></pre></div><p>c</p>',
    ),
    (
        "~~~~\n```\n~~~\nnever closed",
        '<div class="code"><div class="code-head"><span>text</span></div><pre tabindex="0" role="group" '
        'aria-label="Code, text"><code>```\n~~~\nnever closed</code></pre></div>',
    ),
    (
        "| a | b |\n|:--|--:|\n| `x|y` | 1 \\| 2 |\n| only |\n\nc",
        '<div class="scrolls" tabindex="0" role="group" aria-label="Table"><table><thead><tr><th>a</th>'
        '<th class="right">b</th></tr></thead><tbody><tr><td><code>x|y</code></td><td class="right">1 | 2</td></tr>'
        '<tr><td>only</td><td class="right"></td></tr></tbody></table></div><p>c</p>',
    ),
    ("a | b\nno table", "<p>a | b<br>no table</p>"),
    ("&lt;b&gt; <b>bold</b>", "<p>&amp;lt;b&amp;gt; &lt;b&gt;bold&lt;/b&gt;</p>"),
]
_TOLD = {
    "*a* _b_ **c** __d__ ***e*** ~~f~~": (
        "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <em><strong>e</strong></em> <del>f</del></p>"
    ),
    "[a [b](https://example.org) c](https://example.com)": (
        '<p>[a <a href="https://example.org/">b</a> c](<a href="https://example.com/">https://example.com</a>)</p>'
    ),
}
BLOCKS = [(text, html or _TOLD[text]) for text, html in BLOCKS]

EVERYTHING = """# What a model may write

A paragraph with *emphasis*, **strong words**, `code`, ~~what is gone~~ and [a link](https://example.org/).

1. First
   - inside
   - again
2. Second

   ```python
   def answer() -> int:
       return 42  # a line that is long enough that it has to be scrolled on every telephone that there is, surely
   ```

> Quoted, with **weight**.

| River | Length in km | Where it ends, and what is said about the end of it |
|:------|-------------:|:---:|
| Rhine | 1,233 | North Sea |
| Danube | 2,850 | Black Sea |

---

```
no language
```

Done: https://example.org/end"""

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1)) [x](&#106;avascript:alert(1)) [x](vbscript:x)",
    "[x](data:text/html,<script>alert(1)</script>)",
    "<javascript:alert(1)> <data:text/html,x>",
    "![x](javascript:alert(1)) ![x](x onerror=alert(1))",
    '[x](https://example.org/"onmouseover="alert(1))',
    '[x](https://example.org "t" onclick=alert(1))',
    "https://example.org/\"onmouseover='alert(1)'",
    "`<img src=x onerror=alert(1)>`",
    '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```',
    "| <img src=x onerror=alert(1)> |\n|---|\n| </td><script>alert(1)</script> |",
    "# <a href=javascript:alert(1)>x</a>",
    "- <style>*{display:none}</style>\n- <link rel=stylesheet href=//example.org/x>",
    "> <form action=//example.org><input name=q autofocus onfocus=alert(1)></form>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "\u202e\u0000\ufffd <b\x0bonload=alert(1)>",
]

LONG = {
    "stars": "*a **b " * 6_000,
    "one run": "x" + "*" * 40_000,
    "brackets": "[" * 20_000 + "]" * 20_000,
    "links": "[a](" * 10_000,
    "ticks": " ".join("`" * (1 + place % 40) for place in range(3_000)),
    "parentheses": "https://example.org/" + "(" * 5_000 + ")" * 15_000,
    "quotes": "> " * 5_000 + "x",
    "lists": "\n".join("  " * depth + "- x" for depth in range(400)),
    "bars": "|" * 20_000 + "\n" + "|-" * 20_000,
    "rows": "a | b\n" * 5_000,
    "fences": "```" + " " * 20_000 + "`\n" * 200,
    "spaces": "#" + " " * 40_000 + "x\n-" + " " * 40_000 + "x",
}
