// Runs before the page is drawn, so that an answer which its reader hides is not even glimpsed.
document.documentElement.classList.toggle("blind", localStorage.blind === "on");
