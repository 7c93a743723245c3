"""Render a Markdown file as GitHub shows it, on a desktop and on a phone, in light and dark.

    .venv/bin/python docs/render.py README.md demo/readme

writes demo/readme-desktop-light.png, -desktop-dark.png, -phone-light.png and -phone-dark.png. Needs Chromium.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

WIDTHS = {"desktop": 1012, "phone": 390}
SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers for its setting preferredColorScheme
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --page: #fff; --line: #d1d9e0; --code: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --text: #f0f6fc; --page: #0d1117; --line: #3d444d; --code: #151b23; --link: #4493f8; }
}
body { margin: 0; padding: 16px; box-sizing: border-box; background: var(--page); color: var(--text);
  font: 16px/1.5 "Noto Sans", "Liberation Sans", sans-serif; overflow-wrap: break-word; }
a { color: var(--link); text-decoration: none; }
h1, h2 { padding-bottom: .3em; border-bottom: 1px solid var(--line); } img { max-width: 100%; }
code { padding: .2em .4em; border-radius: 6px; background: var(--code); font: 85%/1.45 "DejaVu Sans Mono", monospace; }
pre { padding: 16px; border-radius: 6px; background: var(--code); overflow: auto; line-height: 1.45; }
pre code { padding: 0; background: none; }
table { display: block; width: max-content; max-width: 100%; overflow: auto; border-collapse: collapse; }
td, th { padding: 6px 13px; border: 1px solid var(--line); }
"""


def chromium(profile: str, *arguments: str) -> str:
    """Run headless Chromium with a profile of its own and return what it prints."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = ["chromium", *options, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {command[0]} exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main(source: Path, out: str) -> None:
    """Write a picture for each width and colour scheme."""
    content = MarkdownIt("commonmark").enable("table").render(source.read_text(encoding="utf-8"))
    head = f'<meta charset="utf-8"><base href="{source.resolve().parent.as_uri()}/"><style>{STYLE}</style>'
    measure = "<script>onload = () => document.body.dataset.height = document.body.offsetHeight</script>"
    with tempfile.TemporaryDirectory() as profile:
        page = Path(profile, "page.html")
        for device, width in WIDTHS.items():
            page.write_text(f'{head}<body style="width: {width}px">{content}{measure}</body>', encoding="utf-8")
            window = f"--window-size={max(width, 500)}"  # headless Chromium has no narrower window
            dom = chromium(profile, f"{window},800", "--dump-dom", page.as_uri())
            height = re.findall(r'data-height="(\d+)"', dom)[-1]
            for scheme, number in SCHEMES.items():
                settings = f"--blink-settings=preferredColorScheme={number}"
                picture = f"--screenshot={Path(f'{out}-{device}-{scheme}.png').resolve()}"
                chromium(profile, f"{window},{height}", settings, picture, page.as_uri())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
