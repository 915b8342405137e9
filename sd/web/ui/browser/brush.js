// A brush, shared by the boards of the page. The range input is its width in percent, the checkbox makes it an eraser.

// Lets a person paint on a canvas in a color; calls ended() after each stroke.
const paintStrokes = (canvas, color, ended) => {
  const painting = canvas.getContext("2d");
  const width = find("input[type=range]");
  let from = null; // position of the brush during a stroke

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  };
  const paintTo = (to) => {
    painting.globalCompositeOperation = find(".eraser").checked ? "destination-out" : "source-over";
    painting.lineCap = "round";
    painting.lineWidth = (width.value / 100) * Math.max(canvas.width, canvas.height);
    painting.strokeStyle = color;
    painting.beginPath();
    painting.moveTo(from.x, from.y);
    painting.lineTo(to.x, to.y);
    painting.stroke();
    painting.globalCompositeOperation = "source-over";
    from = to;
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = place(event);
    paintTo(from);
  });
  canvas.addEventListener("pointermove", (event) => from && paintTo(place(event)));
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, () => {
      if (!from) return;
      from = null;
      ended();
    });
};

const isEmpty = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return !data.some((value, i) => i % 4 === 3 && value);
};
