// One streamed answer of POST v1/chat/completions.

import { call, events } from "./http.js";
import { sampling, settings, withSystem } from "./settings.js";

/**
 * Ask for an answer to messages and put it into `node` as it comes: text, reasoning, and meta (model, backend, tokens,
 * rate in tokens per second, prompt, cached). Calls `tell()` whenever something is new. Throws Failure; AbortError where
 * `signal` stops it.
 */
export async function stream(messages, node, signal, tell) {
	const answer = await call("v1/chat/completions", { json: body(messages), signal });
	const meta = (node.meta = { backend: answer.headers.get("x-comeapi-backend") || "", tokens: 0 });
	let began = 0;
	for await (const { data } of events(answer)) {
		if (data === "[DONE]") break;
		const chunk = JSON.parse(data);
		if (chunk.error) throw new Error(String(chunk.error.message || chunk.error));
		if (chunk.model) meta.model = String(chunk.model);
		const delta = chunk.choices?.[0]?.delta || {};
		const thought = delta.reasoning_content || delta.reasoning;
		if (typeof thought === "string") node.reasoning = (node.reasoning || "") + thought;
		if (typeof delta.content === "string") node.text += delta.content;
		if (thought || delta.content) {
			began ||= performance.now();
			meta.tokens++;
			const seconds = (performance.now() - began) / 1000;
			if (seconds > 0.5) meta.rate = meta.tokens / seconds;
		}
		count(meta, chunk);
		tell();
	}
}

const body = messages => ({
	...(settings.model && { model: settings.model }),
	messages: withSystem(messages.map(({ role, text }) => ({ role, content: text }))),
	stream: true,
	stream_options: { include_usage: true },
	...sampling(),
});

/** Take over what a server tells at the end: OpenAI's usage, llama.cpp's timings. */
function count(meta, { usage, timings }) {
	const take = (name, value) => Number.isFinite(value) && (meta[name] = value);
	take("rate", timings?.predicted_per_second);
	take("tokens", usage?.completion_tokens);
	take("prompt", usage?.prompt_tokens);
	take("cached", usage?.prompt_tokens_details?.cached_tokens);
}
