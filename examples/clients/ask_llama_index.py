import os

from llama_index.llms.openai_like import OpenAILike

url = os.environ["OPENAI_BASE_URL"]
model = OpenAILike(model="qwen2.5-coder", api_base=url, is_chat_model=True, temperature=0)
for chunk in model.stream_complete("Why is the sky blue?"):
    print(chunk.delta, end="", flush=True)
print()
