//! Tests of the chat templates, with templates written in the styles of the model families.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use serde_json::json;

use super::*;
use crate::tokenizer::SpecialTokens;

/// ChatML; puts its own system line first where the conversation has none.
const CHATML: &str = "\
{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou help.<|im_end|>\n' -}}
{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' -}}
{% endif %}
";

/// Headers and an end-of-turn token; BOS with the first message; content is trimmed.
const HEADERS: &str = "\
{%- for message in messages %}
    {%- set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\n\n' }}
{%- endif %}";

/// Thinking is dropped from turns before the last question, and tools are called.
const THINKING: &str = "\
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}{{- '\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_question=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.last_question = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'system' %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content or '' %}
        {%- set thinking = '' %}
        {%- if '</think>' in content %}
            {%- set thinking = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_question and (loop.last or thinking) %}
            {{- '<|im_start|>assistant\n<think>\n' + thinking.strip('\n') + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
            {%- set function = tool_call.function %}
            {{- '<tool_call>\n{\"name\": \"' ~ function.name ~ '\", \"arguments\": ' ~ (function.arguments | tojson) ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// `[INST]` around questions, no generation prompt, the system text in the last question, and roles
/// that have to alternate.
const INSTRUCTION: &str = "\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles have to alternate: user, assistant, ..') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if system is defined and loop.index0 >= turns|length - 2 and message == (turns|selectattr('role', 'equalto', 'user')|list)[-1] %}
            {{- '[INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}";

/// Says itself what is learned.
const TAGGED: &str = "\
{% for message in messages %}
    {% if message.role == 'assistant' %}
        {{- '<a>' }}
        {%- generation -%}
        {{ message.content + '</a>' }}
        {%- endgeneration -%}
        {{- '\n' -}}
    {% else %}
        {{- '<u>' + message.content + '</u>\n' -}}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<a>' }}{% endif %}
";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"), Path::new("model")).unwrap()
}

fn conversation(messages: &[(&str, &str)]) -> Conversation {
    let messages = messages.iter().map(|(role, content)| {
        let message = json!({"role": role, "content": content});
        message.as_object().unwrap().clone()
    });
    Conversation { messages: messages.collect(), tools: None }
}

fn parsed(messages: serde_json::Value, tools: Option<serde_json::Value>) -> Conversation {
    Conversation { messages: serde_json::from_value(messages).unwrap(), tools }
}

/// The text with brackets around what is learned, and the text that leads up to the brackets has to
/// be what the model is shown.
fn marked(source: &str, conversation: &Conversation) -> String {
    let rendered = template(source).render_with_learned(conversation).unwrap();
    assert_eq!(rendered.text, template(source).render(conversation, false).unwrap());
    let mut marked = String::new();
    let mut end = 0;
    for span in &rendered.learned {
        assert!(span.start >= end && span.end > span.start, "{:?}", rendered.learned);
        marked.push_str(&rendered.text[end..span.start]);
        marked.push('⟦');
        marked.push_str(&rendered.text[span.clone()]);
        marked.push('⟧');
        end = span.end;
    }
    marked.push_str(&rendered.text[end..]);
    marked
}

#[test]
fn chatml_inserts_its_system_line() {
    let hello = conversation(&[("user", "Hi")]);
    assert_eq!(
        template(CHATML).render(&hello, true).unwrap(),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let own = conversation(&[("system", "Be brief."), ("user", "Hi")]);
    assert_eq!(
        template(CHATML).render(&own, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    );
}

#[test]
fn chatml_learns_every_turn_with_its_end() {
    let turns = conversation(&[
        ("user", "Hi"),
        ("assistant", "Hello!\n"),
        ("user", "assistant\nHello!<|im_end|>\n"),
        ("assistant", ""),
        ("assistant", "Bye"),
        ("user", "?"),
    ]);
    assert_eq!(
        marked(CHATML, &turns),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n⟦Hello!\n<|im_end|>⟧\n\
         <|im_start|>user\nassistant\nHello!<|im_end|>\n<|im_end|>\n\
         <|im_start|>assistant\n⟦<|im_end|>⟧\n<|im_start|>assistant\n⟦Bye<|im_end|>⟧\n\
         <|im_start|>user\n?<|im_end|>\n"
    );
}

#[test]
fn the_assistant_may_be_first() {
    let first = conversation(&[("assistant", "Hello"), ("user", "Hi"), ("assistant", "Bye")]);
    assert_eq!(
        marked(CHATML, &first),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Bye<|im_end|>⟧\n"
    );
    assert_eq!(
        marked(HEADERS, &first),
        "<s><|start|>assistant<|end|>\n\n⟦Hello<|eot|>⟧\
         <|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\n⟦Bye<|eot|>⟧"
    );
}

#[test]
fn nothing_is_learned_without_an_assistant() {
    let turns = conversation(&[("system", "s"), ("user", "assistant")]);
    for source in [CHATML, HEADERS, THINKING, TAGGED] {
        assert!(template(source).render_with_learned(&turns).unwrap().learned.is_empty());
    }
}

#[test]
fn bos_comes_from_the_template_and_content_is_trimmed() {
    let turns = conversation(&[("user", " Hi "), ("assistant", " Hello \n"), ("user", "?")]);
    assert_eq!(
        marked(HEADERS, &turns),
        "<s><|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\n⟦Hello<|eot|>⟧\
         <|start|>user<|end|>\n\n?<|eot|>"
    );
}

#[test]
fn instructions_have_no_generation_prompt() {
    let turns = conversation(&[
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]);
    assert_eq!(
        marked(INSTRUCTION, &turns),
        "<s>[INST] Hi [/INST]⟦ Hello</s>⟧[INST] Bye [/INST]⟦ See you</s>⟧"
    );
}

#[test]
fn a_system_text_that_moves_to_the_last_question() {
    let turns = conversation(&[
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]);
    assert_eq!(
        marked(INSTRUCTION, &turns),
        "<s>[INST] Hi [/INST]⟦ Hello</s>⟧[INST] Be kind.\n\nBye [/INST]⟦ See you</s>⟧"
    );
}

#[test]
fn thinking_is_learned_where_it_is_shown() {
    let turns = conversation(&[
        ("user", "1+1?"),
        ("assistant", "<think>\neasy\n</think>\n\n2"),
        ("user", "2+2?"),
        ("assistant", "<think>\nharder\n</think>\n\n4"),
    ]);
    assert_eq!(
        marked(THINKING, &turns),
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n⟦2<|im_end|>⟧\n\
         <|im_start|>user\n2+2?<|im_end|>\n\
         <|im_start|>assistant\n⟦<think>\nharder\n</think>\n\n4<|im_end|>⟧\n"
    );
    // Without thinking the last turn has an empty block, which the model has to write too.
    let turns =
        conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(
        marked(THINKING, &turns),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n\
         <|im_start|>user\nc<|im_end|>\n\
         <|im_start|>assistant\n⟦<think>\n\n</think>\n\nd<|im_end|>⟧\n"
    );
}

#[test]
fn tool_calls_are_learned_and_tool_results_are_not() {
    let weather = |city: &str| {
        json!([{"type": "function",
                "function": {"name": "weather", "arguments": {"city": city, "days": 1}}}])
    };
    let turns = parsed(
        json!([
            {"role": "user", "content": "Weather in Köln?"},
            {"role": "assistant", "content": null, "tool_calls": weather("Köln")},
            {"role": "tool", "content": "rain"},
            {"role": "tool", "content": "wind"},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "And Bonn?"},
            {"role": "assistant", "content": "I look.", "tool_calls": weather("Bonn")},
            {"role": "tool", "content": "sun"},
            {"role": "assistant", "content": "Sun."},
        ]),
        Some(json!([{"type": "function", "function": {"name": "weather"}}])),
    );
    assert_eq!(
        marked(THINKING, &turns),
        "<|im_start|>system\n# Tools\n\
         {\"type\": \"function\", \"function\": {\"name\": \"weather\"}}\n<|im_end|>\n\
         <|im_start|>user\nWeather in Köln?<|im_end|>\n<|im_start|>assistant\n⟦<tool_call>\n\
         {\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 1}}\n</tool_call>\
         <|im_end|>⟧\n<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\n\
         wind\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Rain.<|im_end|>⟧\n\
         <|im_start|>user\nAnd Bonn?<|im_end|>\n<|im_start|>assistant\n⟦I look.\n<tool_call>\n\
         {\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\", \"days\": 1}}\n</tool_call>\
         <|im_end|>⟧\n<|im_start|>user\n<tool_response>\nsun\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n⟦<think>\n\n</think>\n\nSun.<|im_end|>⟧\n"
    );
}

#[test]
fn a_forced_opening_of_the_generation_prompt() {
    // The prompt opens the thinking, finished turns show none.
    let source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content.split('</think>')[-1] }}\
                  {% if m.role == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}";
    let turns = conversation(&[("user", "Hi"), ("assistant", "<think>x</think>Hello")]);
    assert_eq!(marked(source, &turns), "<user>Hi<assistant>⟦Hello</s>⟧");
}

#[test]
fn whitespace_that_alone_ends_a_turn_is_learned() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let turns = conversation(&[("user", "Hi"), ("assistant", "Hello"), ("user", "?")]);
    assert_eq!(marked(source, &turns), "user: Hi\n\nassistant: ⟦Hello\n\n⟧user: ?\n\n");
}

#[test]
fn generation_tags_say_what_is_learned() {
    let turns = conversation(&[("user", "Hi"), ("assistant", "Hello"), ("user", "</a>")]);
    assert_eq!(marked(TAGGED, &turns), "<u>Hi</u>\n<a>⟦Hello</a>⟧\n<u></a></u>\n");
    assert_eq!(
        template(TAGGED).render(&turns, true).unwrap(),
        "<u>Hi</u>\n<a>Hello</a>\n<u></a></u>\n<a>"
    );
    // Private-use characters in the text do not disturb.
    let turns = conversation(&[("user", "\u{e000}"), ("assistant", "\u{e001}")]);
    assert_eq!(marked(TAGGED, &turns), "<u>\u{e000}</u>\n<a>⟦\u{e001}</a>⟧\n");
}

#[test]
fn generation_tags_work_in_macros_and_keep_whitespace_control() {
    let source = "{% macro turn(m) %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n\
                  {% endmacro %}{% for m in messages %}[{{ turn(m) }}]{% endfor %}";
    assert_eq!(marked(source, &conversation(&[("assistant", "x")])), "[⟦x\n⟧]");
    let (rewritten, found) = learned::rewrite_tags("{%- generation +%}{% generations %}{%");
    assert!(found);
    assert_eq!(rewritten, "{%- filter _learned(_learned_marks) +%}{% generations %}{%");
    assert!(!learned::rewrite_tags("{{ generation }} {% if generation %}").1);
}

#[test]
fn a_template_that_rewrites_turns_is_refused_with_the_way_out() {
    // Every turn shows how many follow it, and content is reversed.
    let source = "{% for m in messages %}{{ messages|length }}{{ m.content|reverse }}{% endfor %}";
    let turns = conversation(&[("user", "ab"), ("assistant", "cd"), ("user", "e")]);
    let error = template(source).render_with_learned(&turns).unwrap_err();
    assert!(error.to_string().contains("message 2"), "{error}");
    assert!(error.hint().unwrap().contains("{% generation %}"));
}

#[test]
fn what_a_template_raises_is_the_error() {
    let twice = conversation(&[("user", "a"), ("user", "b")]);
    let error = template(INSTRUCTION).render(&twice, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template of `model` refuses the conversation: \
         roles have to alternate: user, assistant, .."
    );
    let error = template(INSTRUCTION).render_with_learned(&twice).unwrap_err().to_string();
    assert!(error.ends_with("user, assistant, .."), "{error}");
}

#[test]
fn mistakes_in_a_template_have_a_line() {
    let compile = |source| ChatTemplate::new(source, None, None, Path::new("chat_template.jinja"));
    let error = compile("\n\n{% for %}").unwrap_err().to_string();
    assert!(
        error.starts_with("`chat_template.jinja`: chat template, line 3: syntax error"),
        "{error}"
    );
    let broken = compile("a\n{{ messages[0].x.y }}").unwrap();
    let error = broken.render(&conversation(&[("user", "a")]), false).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn python_beyond_jinja() {
    let render = |source: &str| {
        let turns = parsed(
            json!([{"role": "user", "content": " a-b ", "x": {"b": 1.0, "a": ["é", true, null]}}]),
            None,
        );
        template(source).render(&turns, true).unwrap()
    };
    assert_eq!(render("{{ messages[0].x | tojson }}"), r#"{"b": 1.0, "a": ["é", true, null]}"#);
    assert_eq!(
        render("{{ messages[0].x | tojson(indent=2, sort_keys=true) }}"),
        "{\n  \"a\": [\n    \"é\",\n    true,\n    null\n  ],\n  \"b\": 1.0\n}"
    );
    assert_eq!(render("{{ ['é', '<'] | tojson(ensure_ascii=True) }}"), r#"["\u00e9", "<"]"#);
    assert_eq!(render("{{ {'a': 1} | tojson(separators=(',', ':')) }}"), r#"{"a":1}"#);
    assert_eq!(render("{{ messages[0].x }}"), "{'b': 1.0, 'a': ['é', True, None]}");
    assert_eq!(render("{{ messages[0].x.a[1] }} {{ none }} {{ missing }}"), "True None ");
    assert_eq!(render("{{ messages[0].x | string + '!' }}"), "{'b': 1.0, 'a': ['é', True, None]}!");
    assert_eq!(render("{{ messages[0].content.strip().split('-')[-1] }}"), "b");
    assert_eq!(
        render("{% for k, v in messages[0].x.items() %}{{ k }}{% break %}{% endfor %}"),
        "b"
    );
    assert_eq!(
        render("{{ add_generation_prompt }} {{ tools is none }} {{ bos_token }}"),
        "True True <s>"
    );
    assert_eq!(render("{{ strftime_now('%Y-%m-%d') | length }}"), "10");
    assert_eq!(render("{% if tools is not defined %}x{% endif %}a\n"), "a");
}

#[test]
fn an_unknown_date_format_is_an_error() {
    let error = template("{{ strftime_now('%!') }}").render(&Conversation::default(), false);
    assert!(error.unwrap_err().to_string().contains("strftime_now"));
}

#[test]
fn variables_can_be_set() {
    let source = "{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}";
    let conversation = Conversation::default();
    assert_eq!(template(source).render(&conversation, false).unwrap(), "");
    let template = template(source).with_variable("enable_thinking", false);
    assert_eq!(template.render(&conversation, false).unwrap(), "no");
    assert_eq!(template.source(), source);
}

#[test]
fn folders_keep_templates_in_several_places() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let texts = std::iter::once("text".to_string());
    let special = SpecialTokens { bos: Some(0), eos: Some(1), ..SpecialTokens::default() };
    let tokenizer =
        Tokenizer::train_byte_bpe(texts, 300, &["<b>", "<e>"]).unwrap().with_special(special);
    let open = || ChatTemplate::from_folder(folder.path(), &tokenizer);
    let with_tools = Conversation { messages: Vec::new(), tools: Some(json!([1])) };
    let plain = Conversation::default();

    assert!(open().unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert!(open().unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": "{{ bos_token }}text{{ eos_token }}"}"#);
    assert_eq!(open().unwrap().unwrap().render(&plain, false).unwrap(), "<b>text<e>");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "plain"},
                              {"name": "tool_use", "template": "tools"}]}"#,
    );
    let listed = open().unwrap().unwrap();
    assert_eq!(listed.render(&plain, false).unwrap(), "plain");
    assert_eq!(listed.render(&with_tools, false).unwrap(), "tools");
    write("chat_template.jinja", "file");
    let file = open().unwrap().unwrap();
    assert_eq!(file.render(&with_tools, false).unwrap(), "file");
    assert_eq!(Tokenizer::chat_template_in(folder.path()).unwrap().unwrap(), "file");
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "tools beside");
    let beside = open().unwrap().unwrap();
    assert_eq!(beside.render(&plain, false).unwrap(), "file");
    assert_eq!(beside.render(&with_tools, false).unwrap(), "tools beside");

    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "a", "template": ""}, {"name": "rag", "template": ""}]}"#,
    );
    assert!(open().unwrap_err().to_string().contains("a, rag"));
    write("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert!(open().unwrap_err().to_string().contains("tokenizer_config.json"));
}
