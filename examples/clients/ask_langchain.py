from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="qwen2.5-coder")
for chunk in model.stream("Why is the sky blue?"):
    print(chunk.content, end="", flush=True)
print()
