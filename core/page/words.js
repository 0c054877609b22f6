// All words of the page, in English and Japanese, by the browser's language; numbers and times.

const ENGLISH = {
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
  secondsUnit: "s",

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
  settings: "Settings", model: "Model", anyModel: "the one that is loaded", system: "System prompt",
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

const JAPANESE = {
  now: "現在", chat: "チャット", try: "試す", views: "表示", skip: "本文へ移動",
  noscript: "このページには JavaScript が必要です。状態は /status でも見られます。",

  connecting: "接続しています…", lost: "ロードバランサーに接続できません。再試行しています…", locked: "鍵が必要です。",
  allUp: (n) => (n === 1 ? "バックエンドは稼働中です。" : `${n} 個のバックエンドすべてが稼働中です。`),
  someUp: (up, n) => `${n} 個中 ${up} 個のバックエンドが稼働中です。`,
  noneUp: "稼働中のバックエンドがありません。", none: "バックエンドはまだありません。",
  idle: (slots) => `実行中のリクエストはありません。同時に ${slots} 件まで実行できます。`,
  busy: (busy, slots, queued) => `${slots} スロット中 ${busy} が使用中、${queued ? `${queued} 件が待っています。` : "待ちはありません。"}`,
  pill: (up, n) => `${n} 個中 ${up} 個稼働`,

  charts: "直近 10 分", tokens: "トークン/秒", requests: "リクエスト/秒",
  first: "最初のトークンまで", load: "実行中と待ち", waiting: (n) => `待ち ${n}`, peak: (value) => `最大 ${value}`,
  ago: "10 分前", nowAxis: "現在", atTime: (time, value) => `${time} ${value}`, chartNow: (value, peak) => `現在 ${value}、最大 ${peak}`,
  secondsUnit: "秒",

  backends: "バックエンド", slots: "スロット", slotsBusy: (busy, all) => `${all} スロット中 ${busy} が使用中`,
  tokensShort: "トークン/秒", cache: "キャッシュ", memory: "メモリ", restarts: "再起動", count: "リクエスト", errors: "エラー",
  noModel: "モデル未読み込み", loadingAt: (share) => `読み込み中 ${share}`,
  state: {
    up: "稼働中", new: "確認前", suspect: "要確認", down: "停止", loading: "読み込み中", ejected: "一時除外",
    draining: "切り離し中", stalled: "応答停滞",
  },
  happened: "できごと", nothingYet: "まだありません。バックエンドや回答に起きたことがここに出ます。",
  becameState: (name, state) => `${name}: ${state}`, restarted: (name) => `${name}: 新しいプロセスで復帰しました`,
  left: (name) => `${name}: 外れました`, carried: (n) => `${n} 件の回答を別のバックエンドが引き継ぎました`,

  admin: "管理", adminHint: "バックエンドの切り離し、再起動、追加。クライアントの鍵とは別の管理用の鍵が必要です。",
  adminKey: "管理用の鍵", unlock: "開く", lock: "閉じる", adminOff: "このロードバランサーには管理用の鍵がないため、管理機能は使えません。--admin-key を付けて起動してください。",
  drain: "切り離す", takeBack: "戻す", remove: "削除", restartAll: "すべてのバックエンドを再起動", add: "追加", address: "アドレス",
  slotsAuto: "スロット(空欄: 自動)", done: "完了しました。", restarting: "バックエンドを一つずつ再起動します。",
  askRemove: (name) => `${name} を削除しますか? 実行中のリクエストは最後まで処理されます。`, askRestart: "すべてのバックエンドを一つずつ再起動しますか? リクエストは失われません。",
  yes: "はい", no: "キャンセル",

  keyTitle: "鍵が必要です", keyHint: "このタブにだけ保存されます。", key: "API キー", go: "続ける",
  keyWrong: "その鍵は受け付けられませんでした。", enterKey: "鍵を入力",

  conversations: "会話", newChat: "新しい会話", untitled: "無題", export: "書き出す", import: "読み込む",
  imported: (n) => `${n} 件の会話を読み込みました。`, importFailed: "このファイルに会話はありません。",
  deleteChat: "削除", askDelete: "この会話を削除しますか?", full: "ブラウザーの保存領域がいっぱいです。会話を書き出して削除してください。",
  settings: "設定", model: "モデル", anyModel: "読み込み済みのモデル", system: "システムプロンプト",
  systemHint: "モデルのふるまい方", temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最大トークン数",
  seed: "シード", auto: "自動",
  message: "メッセージ", messageHint: "メッセージを入力…", send: "送信", stop: "停止", enterSends: "Enter で送信、Shift+Enter で改行",
  welcome: "何を話しましょうか", welcomeHint: "あなたのマシンで動いています。入力した内容はこのブラウザーに残ります。",
  samples: ["小さなロボットのお話をして。", "こんにちは、調子はどうですか?", "むかしむかし、"],
  you: "あなた", assistant: "回答", reasoning: "思考", answering: "回答しています…", answered: "回答が完了しました。", stopped: "停止しました。",
  copy: "コピー", copied: "コピーしました", edit: "編集", regenerate: "再生成", save: "送信", cancel: "キャンセル",
  branch: (at, of) => `${of} 版中 ${at}`, earlier: "前の版", later: "次の版", code: "コード", table: "表",
  metaTokens: (n) => `${n} トークン`, metaRate: (n) => `${n} トークン/秒`, metaCached: (n, all) => `プロンプト ${all} トークン中 ${n} はキャッシュ`,
  failed: (why) => `失敗しました: ${why}`, empty: "回答は空でした。", backendTitle: "この回答を始めたバックエンド",

  tryTitle: "同じことを、あなたのプログラムから", tryHint: "ここで選んだモデルと設定を使うコードです。コピーして、貼り付けて、実行してください。",
  prompt: "プロンプト", defaultPrompt: "小さなロボットのお話をして。", base: "OpenAI クライアント用のアドレス", keyNote: "先に COMEAPI_KEY に鍵を設定してください。",
};

const wanted = (navigator.languages || [navigator.language]).find((tag) => /^(en|ja)\b/i.test(tag)) || "en";
export const language = wanted.slice(0, 2).toLowerCase();
const WORDS = language === "ja" ? JAPANESE : ENGLISH;

/** Return the words for a name; those that depend on something are given it. */
export function t(name, ...facts) {
  const words = WORDS[name];
  return typeof words === "function" ? words(...facts) : words;
}

/** Put the words into the frame: elements name theirs in data-t, data-t-label and data-t-placeholder. */
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

/** Return a number with as many digits as are worth reading. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString(language, { maximumFractionDigits: digits });
}

export const percent = (share) => share.toLocaleString(language, { style: "percent", maximumFractionDigits: 0 });

export function megabytes(value) {
  return value >= 1000 ? `${number(Math.round(value / 100) / 10)} GB` : `${number(Math.round(value))} MB`;
}

/** Return the time of day of a moment in seconds. */
export function timeOf(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Return a backend's name: its URL without what all have. */
export const nameOf = (url) => url.replace(/^https?:\/\//, "");
