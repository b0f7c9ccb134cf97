// Shows parts of the page without loading it anew. Without this script the same forms and links load whole pages.
"use strict";

(() => {
  // Uploads under way at the same time.
  const IN_FLIGHT = 2;
  const SECONDS = 120;
  const explain = {
    0: "The server cannot be reached. Check the connection and try again.",
    408: "The server took too long to answer. Try again in a moment.",
    413: "The file is too large: the limit is named where files are chosen. Nothing was analyzed.",
    422: "Nothing is drawn yet. Draw something first.",
    429: "Too many requests at once. Wait a moment and try again.",
  };
  const byId = (id) => document.getElementById(id);

  // The red card for everything that did not come from the application itself.
  function localError(status, name, reference) {
    const card = byId("local-error").content.cloneNode(true);
    card.querySelector("h2").textContent = name ? "No prediction" : "Error";
    card.querySelector(".name").textContent = name || "";
    card.querySelector(".name").hidden = !name;
    card.querySelector(".words").textContent =
      explain[status] || "The server could not answer. Try again in a moment.";
    card.querySelector(".reference").hidden = !reference;
    card.querySelector(".reference code").textContent = reference || "";
    return card;
  }

  function announce(words) {
    byId("announcer").textContent = words;
  }

  // What the server says as elements, whatever its status; anything but one of our parts becomes an error.
  async function part(url, options) {
    try {
      const response = await fetch(url, { ...options, headers: { "X-Partial": "1" }, cache: "no-store" });
      const text = await response.text();
      if (!response.headers.has("X-Lightbox-Part")) return localError(response.status, "", response.headers.get("X-Request-ID"));
      return document.createRange().createContextualFragment(text);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return localError(0);
    }
  }

  // --- uploads ---

  const transfer = (files) => {
    const list = new DataTransfer();
    for (const file of files) list.items.add(file);
    return list.files;
  };

  function showChosen(input) {
    const form = input.form;
    const list = form.querySelector(".chosen");
    const files = [...input.files];
    list.replaceChildren(...files.map((file) => Object.assign(document.createElement("li"), { textContent: file.name })));
    list.hidden = !files.length;
    const thing = form.dataset.thing.replace(/^./, (letter) => letter.toUpperCase());
    form.querySelector("[type=submit]").textContent =
      files.length > 1 ? `Analyze ${files.length} ${thing}s` : `Analyze ${thing}`;
    clearResults();
  }

  // An old verdict must not stand beside a new image.
  function clearResults() {
    byId("result").replaceChildren();
    byId("summary").hidden = true;
  }

  function take(files) {
    const input = byId("file");
    if (!input || !files.length || input.form.dataset.busy) return;
    input.files = transfer(files);
    showChosen(input);
    const details = input.closest("details");
    if (details) details.open = true;
    input.form.querySelector("[type=submit]").focus();
  }

  const drawing = (canvas) =>
    new Promise((resolve) => {
      canvas.toBlob((blob) => resolve([new File([blob], "drawing.png", { type: "image/png" })]), "image/png");
    });

  function newSlot(name) {
    const slot = byId("slot").content.cloneNode(true).firstElementChild;
    slot.querySelector(".name").textContent = name;
    return slot;
  }

  // Send one file; its card shows how far it is and then what the server says. Returns whether there is a verdict.
  function send(form, file, slot) {
    return new Promise((resolve) => {
      const bar = slot.querySelector("progress");
      const words = slot.querySelector(".words");
      const request = new XMLHttpRequest();
      const finish = (content, again) => {
        slot.replaceChildren(content);
        const card = slot.querySelector("[data-verdict]");
        if (card) {
          const confidence = card.querySelector("[data-confidence]");
          announce(`${file.name}: ${card.dataset.verdict}, ${confidence ? confidence.textContent : ""}`);
        } else {
          nameError(slot, file.name);
          if (again) offerAgain(form, file, slot);
        }
        resolve(Boolean(card));
      };
      if (file.size > Number(form.dataset.maxBytes)) {
        finish(localError(413, file.name), false);
        return;
      }
      const data = new FormData();
      data.append("csrf_token", form.elements.csrf_token.value);
      data.append("file", file, file.name);
      request.open("POST", form.getAttribute("action"));
      request.setRequestHeader("X-Partial", "1");
      request.timeout = SECONDS * 1000;
      words.textContent = "Uploading";
      request.upload.addEventListener("progress", (event) => {
        if (!event.lengthComputable) return;
        bar.value = Math.round((100 * event.loaded) / event.total);
        words.textContent = `Uploading, ${bar.value}%`;
      });
      request.upload.addEventListener("load", () => {
        bar.removeAttribute("value");
        words.textContent = "Analyzing…";
      });
      request.addEventListener("load", () => {
        const again = request.status >= 500 || request.status === 429;
        if (request.getResponseHeader("X-Lightbox-Part")) {
          finish(document.createRange().createContextualFragment(request.responseText), again);
        } else {
          finish(localError(request.status, file.name, request.getResponseHeader("X-Request-ID")), again);
        }
      });
      request.addEventListener("error", () => finish(localError(0, file.name), true));
      request.addEventListener("timeout", () => finish(localError(408, file.name), true));
      request.send(data);
    });
  }

  // A refusal of the whole request does not know which file it was.
  function nameError(slot, name) {
    const heading = slot.querySelector("[data-error] h2");
    if (!heading || slot.querySelector(".name:not([hidden])")) return;
    heading.after(Object.assign(document.createElement("p"), { className: "name", textContent: name }));
  }

  function offerAgain(form, file, slot) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.textContent = "Try again";
    button.addEventListener("click", async () => {
      slot.replaceChildren(...newSlot(file.name).childNodes);
      await send(form, file, slot);
      focusCard(slot);
    });
    slot.querySelector("[data-error]").append(button);
  }

  function focusCard(slot) {
    const heading = slot.querySelector("[tabindex='-1']");
    if (heading) heading.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    slot.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  async function upload(form) {
    if (form.dataset.busy) return;
    const canvas = form.querySelector("canvas");
    clearResults();
    if (canvas && !canvas.dataset.drawn) {
      const slot = newSlot("");
      slot.replaceChildren(localError(422));
      byId("result").append(slot);
      return;
    }
    form.dataset.busy = "1";
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    const files = canvas ? await drawing(canvas) : [...byId("file").files];
    const waiting = files.map((file) => ({ file, slot: newSlot(file.name) }));
    byId("result").replaceChildren(...waiting.map(({ slot }) => slot));
    const slots = waiting.map(({ slot }) => slot);
    let verdicts = 0;
    const work = async () => {
      while (waiting.length) {
        const { file, slot } = waiting.shift();
        if (await send(form, file, slot)) verdicts += 1;
      }
    };
    const thing = form.dataset.thing;
    announce(files.length > 1 ? `Analyzing ${files.length} ${thing}s` : `Analyzing ${thing}`);
    await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, files.length) }, work));
    button.disabled = false;
    delete form.dataset.busy;
    if (files.length === 1) {
      focusCard(slots[0]);
      return;
    }
    const failed = files.length - verdicts;
    const summary = byId("summary");
    summary.textContent =
      `${verdicts} of ${files.length} ${thing}s analyzed` + (failed ? `; ${failed} without a verdict` : "");
    summary.hidden = false;
    summary.focus();
  }

  const input = byId("file");
  if (input) {
    input.multiple = true;
    const form = input.form;
    form.classList.add("scripted");
    const over = (on) => form.querySelector(".drop").classList.toggle("over", on);
    const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    // A file that misses the field must not replace the page.
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => {
        if (!holdsFiles(event)) return;
        event.preventDefault();
        over(true);
      });
    }
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) over(false);
    });
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      over(false);
      take([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files].map((file, n) => {
        // What is pasted from the screen is always called image.png.
        if (file.name !== "image.png") return file;
        const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
        return new File([file], `pasted-${time}${n ? `-${n}` : ""}.png`, { type: file.type });
      });
      take(files);
    });
    input.addEventListener("change", () => showChosen(input));
    // A choice that the browser kept when going back.
    addEventListener("pageshow", () => {
      if (input.files.length) showChosen(input);
    });
  }

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (form.matches("[data-upload]")) {
      event.preventDefault();
      upload(form);
    } else if (form.matches("[data-feedback]")) {
      event.preventDefault();
      const data = new FormData(form);
      data.append("label", event.submitter ? event.submitter.value : "");
      const place = form.closest("#feedback");
      const content = await part(form.getAttribute("action"), { method: "POST", body: data });
      const next = content.querySelector("#feedback");
      if (next) {
        place.replaceWith(content);
        next.querySelector("h2").focus();
      } else {
        place.querySelector("[data-error]")?.remove();
        place.append(content);
      }
    } else if (form.matches("[data-filter]")) {
      event.preventDefault();
      filter(form, true);
    }
  });

  // --- heat map ---

  document.addEventListener("input", (event) => {
    if (!event.target.matches("[data-opacity]")) return;
    const viewer = event.target.closest(".viewer");
    viewer.querySelector(".heat").style.opacity = event.target.value / 100;
    viewer.querySelector("output").textContent = `${event.target.value}%`;
  });

  // --- drawing ---

  const canvas = byId("canvas");
  if (canvas) {
    const pen = byId("pen");
    const context = canvas.getContext("2d");
    const lines = new Map();
    const clear = () => {
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      delete canvas.dataset.drawn;
    };
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) * canvas.width) / box.width,
        ((event.clientY - box.top) * canvas.height) / box.height,
      ];
    };
    const draw = (from, to) => {
      context.strokeStyle = "#fff";
      context.lineCap = "round";
      context.lineJoin = "round";
      context.lineWidth = Number(pen.value);
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
    };
    // A line without length is not drawn, so a touch begins with a dot.
    const dot = ([x, y]) => {
      context.fillStyle = "#fff";
      context.beginPath();
      context.arc(x, y, Number(pen.value) / 2, 0, 2 * Math.PI);
      context.fill();
      canvas.dataset.drawn = "1";
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      lines.set(event.pointerId, at(event));
      dot(at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!lines.has(event.pointerId)) return;
      const steps = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const step of steps.length ? steps : [event]) {
        draw(lines.get(event.pointerId), at(step));
        lines.set(event.pointerId, at(step));
      }
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => lines.delete(event.pointerId));
    }
    pen.addEventListener("input", () => {
      byId("pen-value").textContent = pen.value;
    });
    document.querySelector("[data-clear]").addEventListener("click", () => {
      clear();
      clearResults();
      announce("The drawing was cleared");
    });
    byId("pen-value").textContent = pen.value;
    clear();
  }

  // --- results ---

  let turning = null;

  // Show the table of an address, whose query says everything about it.
  async function turn(address, remember) {
    const target = byId("data-table");
    const key = target.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    if (turning) turning.abort();
    turning = new AbortController();
    const { signal } = turning;
    target.setAttribute("aria-busy", "true");
    let content;
    try {
      content = await part("/table" + new URL(address, location.href).search, { signal });
    } catch {
      return;
    }
    target.replaceChildren(content);
    target.removeAttribute("aria-busy");
    if (remember) history[remember](null, "", address);
    matchForm();
    const count = target.querySelector(".count");
    if (count) announce(count.textContent);
    // Whoever used a link in the table goes on from the same place, or from its top.
    if (key) (key.startsWith("sort-") && target.querySelector(`[data-key="${key}"]`) || count || target.querySelector("h2"))?.focus();
  }

  function filter(form, remember) {
    const values = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (value) values.set(name, value);
    }
    const text = values.toString();
    turn(text ? `/?${text}` : "/", remember ? "pushState" : "replaceState");
  }

  // The filters say what the address says; sort and order go along in hidden fields.
  function matchForm() {
    const form = document.querySelector("[data-filter]");
    const values = new URLSearchParams(location.search);
    for (const field of form.querySelectorAll("input[type=hidden]")) field.remove();
    for (const field of form.elements) {
      if (field.name && field !== document.activeElement) {
        field.value = values.get(field.name) || "";
      }
    }
    for (const name of ["sort", "order"]) {
      if (!values.has(name)) continue;
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value: values.get(name) }));
    }
  }

  const filters = document.querySelector("[data-filter]");
  if (filters) {
    let pause = 0;
    filters.classList.add("scripted");
    filters.addEventListener("input", (event) => {
      clearTimeout(pause);
      const typed = event.target.type === "search";
      pause = setTimeout(() => filter(filters, !typed), typed ? 250 : 0);
    });
  }

  document.addEventListener("click", async (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button) return;
    const link = event.target.closest("a[data-partial], a[data-confirm], a[data-cancel]");
    if (!link) return;
    const dialog = byId("dialog");
    if (link.matches("[data-partial]") && byId("data-table")) {
      event.preventDefault();
      turn(link.href, "pushState");
    } else if (link.matches("[data-confirm]")) {
      event.preventDefault();
      dialog.replaceChildren(await part(link.href));
      if (dialog.querySelector("[data-error]")) {
        const close = document.createElement("a");
        Object.assign(close, { href: "", className: "button quiet", textContent: "Close" });
        close.dataset.cancel = "";
        dialog.append(close);
      }
      dialog.showModal();
      dialog.querySelector("[data-cancel]").focus();
    } else if (link.matches("[data-cancel]") && dialog.contains(link)) {
      event.preventDefault();
      dialog.close();
    }
  });

  addEventListener("popstate", () => {
    if (byId("data-table")) turn(location.href, null);
  });

  // A button that the browser kept disabled when going back.
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("[data-upload]")) {
      if (!form.dataset.busy) form.querySelector("[type=submit]").disabled = false;
    }
  });
})();
