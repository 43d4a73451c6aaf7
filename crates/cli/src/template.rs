//! Go templates, as in Docker's `--format`.
//!
//! ```text
//! text ──parse──▶ nodes ──run, with a document──▶ text
//!                            └ functions: Docker's (json, join, pad, …) and Go's (eq, index, printf, …)
//! ```
//!
//! Fields, variables, pipelines, `if`, `with`, `range`, `break`, comments and trim marks have the semantics of Go's
//! `text/template`, and values print as in Go. There are two differences. A field that does not exist is an error that
//! names the existing ones, except in maps of user data such as labels. `define`, `block` and `template` are not
//! supported.

mod functions;
mod parse;
mod printf;
mod run;
mod value;

use serde_json::Value;
use types::{Error, Result};

use self::parse::Node;

/// A result whose error is the reason, without the template's text.
type Why<T> = std::result::Result<T, String>;

pub(crate) struct Template {
    text: String,
    nodes: Vec<Node>,
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Template> {
        let nodes = parse::parse(text).map_err(|why| bad(text, &why))?;
        Ok(Template { text: text.to_owned(), nodes })
    }

    /// Executes the template with a document.
    pub(crate) fn fill(&self, data: &Value) -> Result<String> {
        run::fill(&self.nodes, data).map_err(|why| bad(&self.text, &why))
    }

    /// The template's text, with the heading of each field instead of its value.
    pub(crate) fn headings(&self, of: &dyn Fn(&str) -> String) -> Result<String> {
        run::headings(&self.nodes, of).map_err(|why| bad(&self.text, &why))
    }
}

/// Parses a template and executes it with a document.
pub(crate) fn render(template: &str, data: &Value) -> Result<String> {
    Template::parse(template)?.fill(data)
}

fn bad(template: &str, why: &str) -> Error {
    Error::invalid_argument(format!("invalid format {template:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Value {
        serde_json::json!({
            "A": {"B": "x"}, "L": ["p", "q"], "N": 3, "F": 2.5, "E": "", "T": true, "Z": null, "Name": "/web-1",
            "M": {"80/tcp": [{"Port": "8080"}], "81/tcp": []}, "Label": {"tier": "front"}, "Labels": {"tier": "front"}, "Attributes": null, "Objects": [{"K": 1}, {"K": 2}],
        })
    }

    #[track_caller]
    fn check(cases: &[(&str, &str)]) {
        let data = data();
        for (template, expected) in cases {
            assert_eq!(render(template, &data).unwrap(), *expected, "{template}");
        }
    }

    #[test]
    fn fields_and_variables() {
        check(&[
            ("plain", "plain"),
            ("{{.A.B}}", "x"),
            ("a {{ .N }} b", "a 3 b"),
            ("{{.a.B}} {{.NAME}}", "x /web-1"),
            ("{{(index .L 1) | upper}}", "Q"),
            (r#"{{(index (index .M "80/tcp") 0).Port}}"#, "8080"),
            ("{{$.A.B}}", "x"),
            ("{{$x := .A}}{{$x.B}}", "x"),
            ("{{$x := 1}}{{if .T}}{{$x = 2}}{{end}}{{$x}}", "2"),
            ("{{$x := 1}}{{if .T}}{{$x := 2}}{{end}}{{$x}}", "1"),
            (r#"{{.Label "tier"}}-{{.Label "nosuch"}}"#, "front-"),
            ("{{.Labels.tier}}-{{.Labels.nosuch}}{{.Attributes.any}}", "front-"),
            ("{{/* nobody }} sees it */}}x", "x"),
            ("a  {{- .N -}}  b", "a3b"),
            ("{{-3}}", "-3"),
            ("{{`a\"}}`}}", "a\"}}"),
            (r#"{{"a\tb\"}}"}}"#, "a\tb\"}}"),
        ]);
    }

    #[test]
    fn values_look_as_go_prints_them() {
        check(&[
            ("{{.L}}", "[p q]"),
            ("{{.A}}", "map[B:x]"),
            ("{{.Objects}}", "[map[K:1] map[K:2]]"),
            ("{{.F}} {{.T}} {{.Z}}{{.E}}", "2.5 true "),
            ("{{json .A}}", r#"{"B":"x"}"#),
            ("{{.A | json}}", r#"{"B":"x"}"#),
            ("{{json .Z}}", "null"),
        ]);
    }

    #[test]
    fn blocks() {
        check(&[
            ("{{range .L}}<{{.}}>{{end}}!", "<p><q>!"),
            ("{{range $v := .L}}{{$v}}{{$.N}}{{end}}", "p3q3"),
            ("{{range $k, $v := .L}}{{$k}}={{$v}} {{end}}", "0=p 1=q "),
            ("{{range $p, $to := .M}}{{$p}}:{{len $to}} {{end}}", "80/tcp:1 81/tcp:0 "),
            ("{{range .Objects}}{{.K}}{{end}}", "12"),
            ("{{range .E}}x{{else}}none{{end}}", "none"),
            ("{{range .Z}}x{{else}}none{{end}}", "none"),
            ("{{range $i, $v := .L}}{{if $i}},{{end}}{{$v}}{{end}}", "p,q"),
            ("{{range .L}}{{.}}{{break}}{{end}}", "p"),
            (r#"{{range .L}}{{if eq . "p"}}{{continue}}{{end}}{{.}}{{end}}"#, "q"),
            ("{{if .E}}yes{{else}}no{{end}}", "no"),
            ("{{if .T}}yes{{else}}no{{end}}", "yes"),
            ("{{if .E}}yes{{end}}-", "-"),
            ("{{if .E}}1{{else if .Z}}2{{else if .T}}3{{else}}4{{end}}", "3"),
            ("{{if .T}}{{if .E}}1{{else}}2{{end}}{{else}}3{{end}}", "2"),
            ("{{with .A}}{{.B}}{{end}}", "x"),
            ("{{with $x := .A}}{{$x.B}}{{end}}", "x"),
            ("{{with .E}}{{.}}{{else}}{{.N}}{{end}}", "3"),
            ("{{with .E}}1{{else with .A}}{{.B}}{{end}}", "x"),
        ]);
    }

    #[test]
    fn dockers_functions() {
        check(&[
            (r#"{{join .L ","}}"#, "p,q"),
            (r#"{{join .L "|" | upper}}"#, "P|Q"),
            (r#"{{join .Z ","}}"#, ""),
            (r#"{{split "a:b" ":"}}"#, "[a b]"),
            (r#"{{index (split .Name "-") 1}}"#, "1"),
            (r#"{{title "two words"}}"#, "Two Words"),
            ("{{upper .A.B}}", "X"),
            (r#"{{lower "ABC"}}"#, "abc"),
            (r#"[{{pad "x" 1 2}}] [{{pad .E 1 2}}]"#, "[ x  ] []"),
            ("{{truncate .Name 4}} {{truncate .Name 40}}", "/web /web-1"),
        ]);
    }

    #[test]
    fn gos_own_functions() {
        check(&[
            ("{{index .L 1}}", "q"),
            (r#"{{index .M "nosuch"}}"#, ""),
            (r#"{{index .A "B"}}"#, "x"),
            ("{{len .L}} {{len .Name}} {{len .A}} {{len .Z}}", "2 6 1 0"),
            ("{{slice .Name 1}} {{slice .Name 1 4}} {{slice .L 1}}", "web-1 web [q]"),
            (r#"{{eq .N 3}} {{eq .Name "x" "/web-1"}} {{ne .N 4}}"#, "true true true"),
            ("{{lt .N 4}} {{le .N 3}} {{gt .N 4}} {{ge .F 2.5}}", "true true false true"),
            (r#"{{lt "a" "b"}}"#, "true"),
            ("{{and .T .N}} {{and .E .Nosuch}} {{or .E .N}} {{or .T .Nosuch}}", "3  3 true"),
            ("{{not .E}} {{.T | not}}", "true false"),
            (r#"{{if and (eq .N 3) (not .E)}}both{{end}}"#, "both"),
            (r#"{{print "a" 1 2 "b"}}"#, "a1 2b"),
            (r#"{{println .N "a"}}{{println}}"#, "3 a\n\n"),
            (r#"{{printf "%s-%d" .A.B .N}}"#, "x-3"),
            (r#"{{.A.B | printf "%s %q" .Name}}"#, r#"/web-1 "x""#),
            (
                r#"{{printf "[%5s|%-5s|%05d|%+d|%.1f|%x|%v|%t|%%]" .A.B .A.B .N .N .F 255 .L .T}}"#,
                "[    x|x    |00003|+3|2.5|ff|[p q]|true|%]",
            ),
            (r#"{{printf "%.2s %q %c% d" "abc" .L 65 5}}"#, r#"ab ["p" "q"] A 5"#),
        ]);
    }

    #[test]
    fn errors_in_templates_are_reported() {
        let data = data();
        for (wrong, why) in [
            ("{{.Nosuch}}", "no field Nosuch; there are A, Attributes, E, "),
            ("{{.A.B.C}}", "has no field C"),
            ("{{.Z.C}}", "the value is missing"),
            ("{{", "}} is missing"),
            ("{{\"}}", "not closed"),
            ("{{range .L}}", "{{end}} is missing"),
            ("{{end}}x", "without a beginning"),
            ("{{else}}x", "without a beginning"),
            ("{{if .T}}{{else}}{{else}}{{end}}", "second {{else}}"),
            ("{{nosuch .A}}", "unknown function \"nosuch\"; known are and, "),
            ("{{(len .L}}", "parenthesis is not closed"),
            ("{{len .L)}}", "not open"),
            ("{{len}}", "len takes VALUE"),
            ("{{.A | }}", "a value is missing"),
            ("{{}}", "a value is missing"),
            ("{{.A .B}}", "no field B"),
            ("{{.N 1}}", "takes nothing"),
            ("{{$x}}", "no variable $x"),
            ("{{index .L 5}}", "5 is beyond"),
            ("{{index .N 5}}", "index takes"),
            ("{{slice .Name 5 2}}", "slice"),
            ("{{eq .N .Name}}", "cannot be compared"),
            ("{{lt .T .T}}", "cannot be compared"),
            ("{{range .N}}{{end}}", "range"),
            (r#"{{printf "%d" .Name}}"#, "%d"),
            (r#"{{printf "%s"}}"#, "%s"),
            (r#"{{printf "%s" 1 2}}"#, "more"),
            ("{{break}}", "only inside range"),
        ] {
            let said = render(wrong, &data).map_err(|error| error.chain());
            assert!(said.as_ref().is_err_and(|said| said.contains(why)), "{wrong}: {said:?}");
        }
    }

    #[test]
    fn headings_stand_in_the_places_of_fields() {
        for (template, expected) in [
            ("{{.ID}}\t{{upper .Names}} x", "<ID>\t<Names> x"),
            (r#"{{json .A.B}} {{join .L ","}} {{printf "%s-%s" .X .Y}}"#, "<A> <L> <X>-<Y>"),
            (r#"{{.Label "com.docker.some-thing"}}"#, "some thing"),
            ("{{range .L}}{{.}}{{end}}{{with .A}}{{.B}}{{end}}", "<L><A>"),
        ] {
            let found = Template::parse(template).unwrap().headings(&|field| format!("<{field}>"));
            assert_eq!(found.unwrap(), expected, "{template}");
        }
    }
}
