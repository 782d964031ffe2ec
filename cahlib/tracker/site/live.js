// Exchanges what lies in <main> for what the server would show now, without a reload.
"use strict";

const pulse = document.getElementById("pulse");

async function renew() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const old = document.querySelector("main");
    const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    old.replaceWith(fresh.querySelector("main"));
    document.querySelectorAll("main .scroll").forEach((box, n) => { box.scrollLeft = scrolled[n] || 0; });
    document.title = fresh.title;
    locate();
    pulse.textContent = "Updated " + new Date().toLocaleTimeString() + ".";
  } catch {
    pulse.textContent = "The tracker does not answer; trying again.";
  }
}

// Where this is, only the browser knows: a proxy may hold it below a path.
function locate() {
  document.querySelectorAll("[data-here]").forEach((place) => {
    place.textContent = new URL(place.dataset.here, location.href).href.replace(/\/$/, "");
  });
}

locate();
setInterval(renew, 5000);
document.addEventListener("visibilitychange", renew);
