"""A report as one HTML page and as Markdown."""

from collections.abc import Sequence
from html import escape

from duality_ssl.reports import names
from duality_ssl.reports.overview import Section
from duality_ssl.reports.style import FONT, STYLE

# Nothing is loaded and nothing is run, whatever the labels of a row hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LAYOUT = f"""
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:2.2rem 1.2rem 4rem;max-width:1140px;background:var(--paper);
color:var(--ink);font:15.5px/1.55 {FONT}}}
h1{{font-size:1.9rem;line-height:1.2;margin:0 0 .6rem}}
h2{{font-size:1.4rem;margin:3.2rem 0 .5rem;padding-top:1.1rem;border-top:1px solid var(--grid)}}
h3{{font-size:1.05rem;margin:0 0 .5rem}}
p{{max-width:46rem;margin:.3rem 0}}
nav ul{{padding-left:1.2rem;columns:2 18rem}}
nav>ul>li{{break-inside:avoid;margin-bottom:.4rem}}
nav ul ul{{columns:auto;font-size:.9rem}}
a{{color:var(--c0);text-decoration:none}}
a:hover,a:focus{{text-decoration:underline}}
p.muted,.caption,figcaption{{color:var(--muted);font-size:.87rem}}
.caption,figcaption{{max-width:46rem;margin-top:.5rem}}
figure,.block{{margin:2.2rem 0}}
.panels{{display:flex;flex-wrap:wrap;gap:1.1rem 1.25rem}}
.panels svg{{max-width:100%;height:auto}}
.legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.2rem;margin:.2rem 0 .7rem;
padding:0;font-size:.87rem}}
.legend li{{display:flex;align-items:center;gap:.4rem}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}}
th,td{{padding:.26rem .6rem;text-align:right;white-space:nowrap;font-weight:400;
border-bottom:1px solid var(--grid)}}
thead th{{font-weight:600;white-space:normal;min-width:4.2rem;vertical-align:bottom;
border-bottom:1px solid var(--muted)}}
.label{{text-align:left}}
td b{{font-weight:700}}
tbody tr:hover{{background:var(--grid)}}
@media print{{body{{font-size:10.5pt;max-width:none;padding:0}}nav{{display:none}}
figure,tr{{break-inside:avoid}}h2,h3{{break-after:avoid}}.wide{{overflow:visible}}}}
""".replace("\n", "")


def html(title: str, sections: Sequence[Section]) -> str:
    """Return a page that needs no server, no network, no script and no font of its own."""
    entries = "".join(
        f'<li><a href="#{_anchor(section)}">{escape(section.title)}</a><ul>'
        + "".join(
            f'<li><a href="#{block.name}">{escape(block.title)}</a></li>'
            for block in section.blocks
        )
        + "</ul></li>"
        for section in sections
    )
    parts = "\n".join(
        f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>\n'
        + "".join(f'<p class="muted">{escape(text)}</p>\n' for text in section.sentences)
        + "".join(block.html() for block in section.blocks)
        + "</section>"
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{LAYOUT}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n<nav><ul>{entries}</ul></nav>\n{parts}\n</body></html>\n"
    )


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same as Markdown; the figures are files beside it (`Figure.name`)."""
    parts = [f"# {title}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"{text}\n" for text in section.sentences]
        for block in section.blocks:
            parts += [f"### {block.title}\n", block.markdown()]
    return "\n".join(parts)


def _anchor(section: Section) -> str:
    return names.slug(f"section {section.title}")
