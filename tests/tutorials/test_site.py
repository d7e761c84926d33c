"""The static site: all notebooks, pictures and equations are there, no link is broken; as text, and in Chromium."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

nbformat = pytest.importorskip("nbformat", reason="the site is made of notebooks")

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
NAMES = [script.stem for script in sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
locate = runpy.run_path(str(TUTORIALS / "index.py"), run_name="index")["locate"]


class Page(HTMLParser):
    """What a page holds: anchors, links, pictures, equations, what it loads, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.pictures, self.loaded, self.equations, self.words = set(), [], [], [], 0, []
        self.in_article = False  # and not in a table of contents, which has the headings' equations again
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes.get("id"), attributes.get("name")}
        self.in_article |= tag == "article"
        self.equations += tag == "math" and self.in_article
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append((attributes["src"], attributes.get("alt", "")))
        if tag in ("img", "script") and "src" in attributes or tag == "link" and attributes["rel"] == "stylesheet":
            self.loaded.append(attributes.get("src") or attributes["href"])

    def handle_endtag(self, tag):
        self.in_article &= tag != "article"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, made anew."""
    for module in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'the site needs {module}: pip install -e ".[site]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(TUTORIALS / "build.py"), "--site", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert made.returncode == 0, made.stderr + made.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """All pages, by their path within the site."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def prose(name: str) -> str:
    return "\n\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == "markdown")


def alts(name: str) -> list[str]:
    """The alt text of a notebook's pictures, in order."""
    return [
        output.metadata["image/png"]["alt"]
        for cell in notebook(name).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def equations(name: str) -> int:
    """How many equations a notebook's prose has."""
    text = re.sub(r"```.*?```|`[^`]+`", "", prose(name), flags=re.DOTALL)
    text, blocks = re.subn(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    return blocks + len(re.findall(r"(?<![\\$])\$[^$]+\$", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_picture_and_equation_is_there(site, pages, name):
    page, title = pages[f"{name}.html"], prose(name).partition("\n")[0].removeprefix("# ")
    assert title in page.text and any(link.endswith(f"{name}.html") for link in pages["index.html"].links)
    assert [alt for _, alt in page.pictures] == alts(name)
    assert all((site / source).is_file() for source, _ in page.pictures)
    assert page.equations == equations(name)


def test_no_link_is_broken(pages, site):
    seen = 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"(https?:|mailto:)", link):
                continue
            target, anchor = urldefrag(urljoin(path, unquote(link)))
            assert not link.startswith("/") and (site / target).is_file(), f"{path} links to {link}"
            assert not anchor or target not in pages or anchor in pages[target].ids, f"{path} links to {link}"
            seen += 1
    assert seen > 1000


def test_nothing_is_loaded_from_the_network(pages):
    assert not [(path, source) for path, page in pages.items() for source in page.loaded if "//" in source]


@pytest.mark.parametrize("name", NAMES)
def test_functions_of_the_package_link_to_their_lines(pages, name):
    for function in set(re.findall(r"`(minicenternet(?:\.\w+)+)(?:\(\))?`", prose(name))):
        file, line = locate(function)
        page = f"source/minicenternet/{file}.html"
        assert f"{page}#L-{line}" in pages[f"{name}.html"].links and f"L-{line}" in pages[page].ids


def test_search_knows_the_words_of_the_notebooks(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{name}"' in index for name in NAMES) and "convolut" in index


@pytest.mark.parametrize("name", NAMES)
def test_exercises_are_shown_unsolved_and_their_solutions_folded(site, name):
    page = re.sub(r"<[^>]+>", "", (site / f"{name}.html").read_text(encoding="utf-8"))
    solved = sum("exercise" in cell.metadata.get("tags", ()) for cell in notebook(name).cells)
    assert page.count("Show the solution") == solved and page.count("raise NotImplementedError(") >= solved


@pytest.fixture(scope="module")
def mathml():
    """The function that typesets an equation."""
    pytest.importorskip("latex2mathml")
    code = "import json, sys; from edition import mathml; print(mathml(*json.load(sys.stdin)))"
    folders = f"import sys; sys.path[:0] = {[str(TUTORIALS), str(TUTORIALS / 'site')]}; "

    def typeset(latex: str, display: str = "inline") -> str:
        equation = json.dumps([latex, display])
        return subprocess.run([sys.executable, "-c", folders + code], input=equation, capture_output=True, text=True)

    return typeset


@pytest.mark.parametrize(
    ("latex", "parts"),
    [
        (r"\frac{1}{N}", ["<mfrac>"]),
        (r"\begin{aligned} a &= b \\[2pt] c &= d \end{aligned}", ["<mtable", 'columnalign="right"']),
        (r"\begin{cases} a & b \\ c & d \end{cases} \tag{E4}", ["<mtable", "(E4)"]),
        ("a \\\nb", ["<mi>a</mi>", "<mi>b</mi>"]),
    ],
)
def test_equations_are_typeset(mathml, latex, parts):
    made = mathml(latex).stdout
    assert all(part in made for part in parts) and "2pt" not in made and "\\" not in made


@pytest.mark.parametrize(
    ("latex", "unknown"), [(r"\nosuch x", r"\nosuch"), (r"\begin{gathered} a & b \end{gathered}", "<mi>&</mi>")]
)
def test_what_cannot_be_typeset_is_refused(mathml, latex, unknown):
    assert f"ValueError: {unknown} cannot be typeset in" in mathml(latex).stderr


HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
async function open(page) {
  const frame = document.createElement("iframe");
  frame.width = 1200; frame.height = 900; frame.src = page;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; });
  return frame;
}
async function look(page) {
  const frame = await open(page), seen = frame.contentDocument;
  for (const folded of seen.querySelectorAll("details")) folded.open = true;
  const found = {
    title: seen.querySelector("h1").innerText,
    pictures: [...seen.querySelectorAll("article img")].map((picture) => [picture.alt, picture.clientWidth]),
    equations: [...seen.querySelectorAll("article math")].map((equation) => equation.getBoundingClientRect().width),
    links: [...seen.querySelectorAll("a[href]")].map((link) => link.href),
    wide: seen.documentElement.scrollWidth > seen.documentElement.clientWidth,
  };
  frame.remove();
  return found;
}
async function broken(links) {
  const pages = new Map(), wrong = [];
  for (const link of new Set(links.filter((link) => link.startsWith(location.origin)))) {
    const [page, anchor] = link.split("#");
    if (!pages.has(page)) {
      const answer = await fetch(page);
      pages.set(page, answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null);
    }
    if (!pages.get(page) || (anchor && !pages.get(page).getElementById(decodeURIComponent(anchor)))) wrong.push(link);
  }
  return wrong;
}
async function search(word) {
  const frame = await open("search.html?q=" + word);
  for (let i = 0; i < 100 && !frame.contentDocument.querySelector("#search-results li a"); i++) await wait(100);
  return [...frame.contentDocument.querySelectorAll("#search-results li a")].map((link) => link.href);
}
(async () => {
  const result = { pages: {} };
  try {
    for (const name of NAMES) result.pages[name] = await look(name + ".html");
    result.broken = await broken(Object.values(result.pages).flatMap((page) => page.links));
    result.found = await search("convolution");
  } catch (error) { result.error = String(error); }
  await fetch("/result", { method: "POST", body: JSON.stringify(result) });
})();
</script>"""


@pytest.fixture(scope="module")
def seen(site, tmp_path_factory):
    """What Chromium saw of the site."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome here (apt-get install chromium)")
    (site / "harness.html").write_text(HARNESS.replace("NAMES", json.dumps(NAMES)), encoding="utf-8")
    results, done = [], threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(site))

        def do_POST(self):
            results.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]
    address = f"http://127.0.0.1:{server.server_port}/harness.html"
    with subprocess.Popen(
        [BROWSER, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        finished = done.wait(200)
        browser.terminate()
    server.shutdown()
    server.server_close()
    (site / "harness.html").unlink()
    assert finished, "Chromium said nothing for 200 s"
    assert "error" not in results[0], results[0]["error"]
    return results[0]


@pytest.mark.parametrize("name", NAMES)
def test_chromium_shows_every_notebook(seen, name):
    page = seen["pages"][name]
    assert page["title"].startswith(prose(name).partition("\n")[0].removeprefix("# "))
    assert [alt for alt, _ in page["pictures"]] == alts(name) and all(width > 100 for _, width in page["pictures"])
    assert len(page["equations"]) == equations(name) and all(width > 3 for width in page["equations"])
    assert not page["wide"], "the page is wider than the window"


def test_chromium_finds_no_broken_link(seen):
    assert seen["broken"] == []


def test_chromium_finds_by_search(seen):
    assert any("03_convolution" in link for link in seen["found"])
