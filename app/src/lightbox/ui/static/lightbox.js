// Shows parts of the page without loading it anew. Without this script the same forms and links load whole pages.
"use strict";

(() => {
  const explain = {
    0: "The server cannot be reached. Check the connection and try again.",
    413: "The file is too large.",
    429: "Too many requests at once. Wait a moment and try again.",
  };

  // The red card for everything that did not come from the application itself.
  function localError(status) {
    const card = document.getElementById("local-error").content.cloneNode(true);
    card.querySelector("h2").textContent = "Error";
    card.querySelector("p").textContent = explain[status] || "The server could not answer. Try again in a moment.";
    return card;
  }

  // Put into the target what the server says, whatever its status; anything else becomes an error.
  async function show(target, url, options) {
    let content;
    try {
      const response = await fetch(url, { ...options, headers: { "X-Partial": "1" }, cache: "no-store" });
      const text = await response.text();
      if (response.headers.has("X-Lightbox-Part")) {
        content = document.createRange().createContextualFragment(text);
      } else {
        content = localError(response.status);
      }
    } catch {
      content = localError(0);
    }
    target.replaceChildren(content);
  }

  function fileOf(form) {
    return form.querySelector("input[type=file]").files[0];
  }

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset.partial) return;
    event.preventDefault();
    const target = document.getElementById("result");
    const button = form.querySelector("button");
    const working = form.querySelector(".working");
    if (button.disabled) return;
    // An old verdict must not stand beside a new image.
    target.replaceChildren();
    if (fileOf(form) && fileOf(form).size > Number(form.dataset.maxBytes)) {
      target.replaceChildren(localError(413));
      return;
    }
    button.disabled = true;
    working.hidden = false;
    await show(target, form.dataset.partial, { method: "POST", body: new FormData(form) });
    button.disabled = false;
    working.hidden = true;
    target.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });

  document.addEventListener("change", (event) => {
    if (event.target.type !== "file") return;
    const name = event.target.closest(".drop").querySelector(".drop-name");
    const file = event.target.files[0];
    name.hidden = !file;
    name.textContent = file ? file.name : "";
    document.getElementById("result").replaceChildren();
  });

  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      const drop = event.target.closest && event.target.closest(".drop");
      if (drop) drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    });
  }

  async function turn(partial, href, remember) {
    const target = document.getElementById("data-table");
    target.setAttribute("aria-busy", "true");
    await show(target, partial);
    target.removeAttribute("aria-busy");
    if (remember) history.pushState({ partial }, "", href);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-partial]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    turn(link.dataset.partial, link.href, true);
  });

  addEventListener("popstate", () => {
    if (document.getElementById("data-table")) turn("/table" + location.search, location.href, false);
  });

  // A form that the browser kept when going back must not look ready while its button is disabled.
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("form[data-partial] button")) button.disabled = false;
  });
})();
