// Before anything is drawn, so that a dark page does not begin with a flash of light.
try {
  document.documentElement.dataset.theme = localStorage.getItem("headrace-theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // storage is not allowed
}
