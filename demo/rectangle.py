"""A picture on which a rectangle is drawn with the mouse, a finger or a pen."""

import base64
from io import BytesIO
from typing import Any

import gradio as gr
from PIL import Image

_HTML = '<div class="stage"><img src="${value}" draggable="false" alt="The view of the photo"><div class="mark"></div></div>'
_CSS = """
.stage {position: relative; cursor: crosshair; touch-action: none; user-select: none; line-height: 0}
.stage img {width: 100%; border-radius: 8px}
.mark {position: absolute; display: none; border: 3px solid #fff; outline: 2px solid #4f46e5; border-radius: 3px;
       box-shadow: 0 0 0 9999px rgb(0 0 0 / 35%); pointer-events: none}
.stage {overflow: hidden; border-radius: 8px}
"""
_SCRIPT = """
let start = null;
const place = (event) => {
  const area = element.querySelector('.stage').getBoundingClientRect();
  const part = (value, from, length) => Math.min(1, Math.max(0, (value - from) / length));
  return [part(event.clientX, area.left, area.width), part(event.clientY, area.top, area.height)];
};
const box = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const show = (b) => {
  const mark = element.querySelector('.mark').style;
  mark.display = 'block';
  mark.left = `${100 * b[0]}%`;
  mark.top = `${100 * b[1]}%`;
  mark.width = `${100 * (b[2] - b[0])}%`;
  mark.height = `${100 * (b[3] - b[1])}%`;
};
element.addEventListener('pointerdown', (event) => { start = place(event); event.preventDefault(); });
window.addEventListener('pointermove', (event) => { if (start) show(box(start, place(event))); });
window.addEventListener('pointerup', (event) => {
  if (!start) return;
  const drawn = box(start, place(event));
  start = null;
  if (drawn[2] - drawn[0] > 0.01 && drawn[3] - drawn[1] > 0.01) trigger('select', {box: drawn});
});
"""


def rectangle_picture(**options: Any) -> gr.HTML:
    """The component; its value is from `as_source`, and its `select` event has the `box` in fractions of the picture."""
    return gr.HTML("", html_template=_HTML, css_template=_CSS, js_on_load=_SCRIPT, **options)


def as_source(picture: Image.Image) -> str:
    """A picture as the text of an `src`."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
