// The page's words in Japanese; english.js has the same names.

export default {
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
  seconds: "秒",

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
