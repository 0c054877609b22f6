// The page's words in English. Those that depend on something are functions.

export default {
  now: "Now", chat: "Chat", try: "Try it", views: "Views", skip: "Skip to the content",
  noscript: "This page needs JavaScript. The state is at /status, too.",

  connecting: "Connecting…", lost: "The balancer can't be reached. Trying again…", locked: "A key is needed.",
  allUp: (n) => (n === 1 ? "The backend is up." : n === 2 ? "Both backends are up." : `All ${n} backends are up.`),
  someUp: (up, n) => `${up} of ${n} backends ${up === 1 ? "is" : "are"} up.`,
  noneUp: "No backend is up.", none: "No backend is known yet.",
  idle: (slots) => `Nothing is running. ${slots} ${slots === 1 ? "request" : "requests"} can run at once.`,
  busy: (busy, slots, queued) => `${busy} of ${slots} slots ${busy === 1 ? "is" : "are"} busy, ${queued ? (queued === 1 ? "1 request waits" : `${queued} requests wait`) : "nobody waits"}.`,
  pill: (up, n) => `${up} of ${n} up`,

  charts: "The last ten minutes", tokens: "Tokens per second", requests: "Requests per second",
  first: "Time to first token", load: "Running and waiting", waiting: (n) => `${n} waiting`, peak: (value) => `peak ${value}`,
  ago: "10 min ago", nowAxis: "now", atTime: (time, value) => `${time}: ${value}`, chartNow: (value, peak) => `now ${value}, at most ${peak}`,
  seconds: "s",

  backends: "Backends", slots: "Slots", slotsBusy: (busy, all) => `${busy} of ${all} slots busy`,
  tokensShort: "Tokens/s", cache: "From cache", memory: "Memory", restarts: "Restarts", count: "Requests", errors: "Errors",
  noModel: "no model loaded", loadingAt: (share) => `loading, ${share}`,
  state: {
    up: "up", new: "not probed yet", suspect: "suspect", down: "down", loading: "loading", ejected: "left out",
    draining: "draining", stalled: "stalled",
  },
  happened: "What happened", nothingYet: "Nothing yet. What happens to backends and answers is told here.",
  becameState: (name, state) => `${name} is ${state}`, restarted: (name) => `${name} has come back as a new process`,
  left: (name) => `${name} has left`,
  carried: (n) => (n === 1 ? "An answer went on at another backend" : `${n} answers went on at other backends`),

  admin: "Administration", adminHint: "Drain, restart and add backends. This takes the admin key, which is another one than the clients'.",
  adminKey: "Admin key", unlock: "Unlock", lock: "Lock", adminOff: "This balancer has no admin key, so its administration is off. Start it with --admin-key.",
  drain: "Drain", takeBack: "Take back", remove: "Remove", restartAll: "Restart all backends", add: "Add", address: "Address",
  slotsAuto: "Slots (empty: as it says)", done: "Done.", restarting: "The backends are restarted, one after another.",
  askRemove: (name) => `Remove ${name}? Its running requests may finish.`, askRestart: "Restart all backends, one after another? No request is lost.",
  yes: "Yes", no: "Cancel",

  keyTitle: "This balancer asks for a key", keyHint: "It is kept for this tab only.", key: "API key", go: "Continue",
  keyWrong: "That key was not accepted.", enterKey: "Enter the key",

  conversations: "Conversations", newChat: "New conversation", untitled: "Untitled", export: "Export", import: "Import",
  imported: (n) => `${n} ${n === 1 ? "conversation" : "conversations"} imported.`, importFailed: "This file holds no conversations.",
  deleteChat: "Delete", askDelete: "Delete this conversation?", full: "The browser keeps no more. Export and delete some conversations.",
  settings: "Settings", model: "Model", anyModel: "Loaded model", system: "System prompt",
  systemHint: "How the model is to behave", temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Most tokens",
  seed: "Seed", auto: "auto",
  message: "Message", messageHint: "Write a message…", send: "Send", stop: "Stop", enterSends: "Enter sends, Shift+Enter starts a new line",
  welcome: "What shall it be?", welcomeHint: "It runs on your machines. What you write stays in this browser.",
  samples: ["Tell me a story about a small robot.", "How are you today?", "Once upon a time in a magical forest,"],
  you: "You", assistant: "Answer", reasoning: "Reasoning", answering: "Answering…", answered: "The answer is complete.", stopped: "Stopped.",
  copy: "Copy", copied: "Copied", edit: "Edit", regenerate: "Regenerate", save: "Send", cancel: "Cancel",
  branch: (at, of) => `Version ${at} of ${of}`, earlier: "Earlier version", later: "Later version", code: "code", table: "table",
  metaTokens: (n) => `${n} tokens`, metaRate: (n) => `${n} tokens/s`, metaCached: (n, all) => `${n} of ${all} prompt tokens from cache`,
  failed: (why) => `It failed: ${why}`, empty: "The answer is empty.", backendTitle: "The backend that began this answer",

  tryTitle: "The same, from your program", tryHint: "The lines below use the model and the settings chosen here. Copy, paste, run.",
  prompt: "Prompt", defaultPrompt: "Tell me a story about a small robot.", base: "Address for any OpenAI client", keyNote: "Set COMEAPI_KEY to your key before.",
};
