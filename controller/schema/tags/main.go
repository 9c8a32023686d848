// Writes ../tags.txt: what the Go types of Kubernetes say about their fields in struct tags and markers, which OpenAPI
// does not carry. Run by hand when k8s-openapi moves to another Kubernetes, with k8s.io/api and k8s.io/apimachinery
// of that version where Go finds them (Debian: golang-k8s-api-dev, GO111MODULE=off GOPATH=/usr/share/gocode):
//
//	go run main.go > ../tags.txt
//
// build.rs refuses a tags.txt that names a field the table does not have.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strconv"
	"strings"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kinds of build.rs.
var roots = []any{
	core.NamespaceList{}, core.NodeList{}, core.PodList{}, core.ServiceList{}, core.EndpointsList{},
	core.PersistentVolumeList{}, core.PersistentVolumeClaimList{}, core.ConfigMapList{}, core.SecretList{},
	core.ServiceAccountList{}, core.EventList{}, core.Binding{}, apps.StatefulSetList{},
	apps.ControllerRevisionList{}, discovery.EndpointSliceList{}, storage.StorageClassList{}, rbac.RoleList{},
	rbac.ClusterRoleList{}, rbac.RoleBindingList{}, rbac.ClusterRoleBindingList{}, coordination.LeaseList{},
	policy.PodDisruptionBudgetList{}, policy.Eviction{}, autoscaling.Scale{}, meta.DeleteOptions{}, meta.Status{},
}

const head = `# What the Go types of Kubernetes 1.36 (k8s.io/api and apimachinery v0.36.4) say about their fields in struct tags and
# markers, and OpenAPI does not. build.rs joins it to the table; a field that is not listed has none of these.
# Written by tags/main.go.
#
# A line without indent names a type; below it, one line a field:
#   keep          its zero value ("", 0, false, [], {}) is kept: a pointer, or no omitempty
#   merge[=KEY]   patchStrategy merge, with the patchMergeKey of a list of objects
#   retainKeys    patchStrategy retainKeys
#   replace       patchStrategy replace
#   list=...      listType: atomic, set, or map:KEYS
#   map=...       mapType or structType: atomic, granular
#   go=TYPE       its Go type, where that does not follow from the schema (decoding errors name it)
#   enum=A,B      the values of its +enum type
#   via=NAME      the embedded struct that has it (decoding errors name it)
`

var unmarshaler = reflect.TypeOf((*json.Unmarshaler)(nil)).Elem()

// types maps OpenAPI names to their lines.
var types = map[string][]string{}

func main() {
	for _, root := range roots {
		walk(reflect.TypeOf(root))
	}
	fmt.Print(head)
	names := []string{}
	for name, lines := range types {
		if len(lines) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		slices.Sort(types[name])
		fmt.Printf("%s\n  %s\n", name, strings.Join(types[name], "\n  "))
	}
}

func openAPIName(t reflect.Type) string {
	path := strings.ReplaceAll(strings.Replace(t.PkgPath(), "k8s.io/", "io.k8s.", 1), "/", ".")
	return path + "." + t.Name()
}

func walk(t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		walk(t.Elem())
	case reflect.Struct:
		name := openAPIName(t)
		if _, seen := types[name]; seen || reflect.PointerTo(t).Implements(unmarshaler) {
			return
		}
		types[name] = nil
		fields(name, t, "")
	}
}

// fields notes the fields of t, which is the struct named owner or, reached through via, embedded in it.
func fields(owner string, t reflect.Type, via string) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if field.Anonymous && name == "" {
			inner := field.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			fields(owner, inner, field.Name)
			continue
		}
		if tags := tagsOf(t, field, options, via); len(tags) > 0 {
			types[owner] = append(types[owner], name+" "+strings.Join(tags, " "))
		}
		walk(field.Type)
	}
}

func tagsOf(owner reflect.Type, field reflect.StructField, options, via string) (tags []string) {
	t := field.Type
	pointer := t.Kind() == reflect.Pointer
	if pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct && (pointer || !strings.Contains(options, "omitempty")) {
		tags = append(tags, "keep")
	}
	strategies := strings.Split(field.Tag.Get("patchStrategy"), ",")
	if slices.Contains(strategies, "merge") {
		if key := field.Tag.Get("patchMergeKey"); key != "" {
			tags = append(tags, "merge="+key)
		} else {
			tags = append(tags, "merge")
		}
	}
	for _, strategy := range []string{"retainKeys", "replace"} {
		if slices.Contains(strategies, strategy) {
			tags = append(tags, strategy)
		}
	}
	if marker := sourceOf(owner).markers[owner.Name()+"."+field.Name]; marker != nil {
		switch {
		case marker.list == "map":
			tags = append(tags, "list=map:"+strings.Join(marker.keys, ","))
		case marker.list != "":
			tags = append(tags, "list="+marker.list)
		case marker.kind != "":
			tags = append(tags, "map="+marker.kind)
		}
	}
	inner := t
	for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
		inner = inner.Elem()
	}
	named := inner.Kind() != reflect.Struct && inner.PkgPath() != ""
	if named || t.Kind() == reflect.Map && (t.PkgPath() != "" || t.Key().PkgPath() != "") {
		tags = append(tags, "go="+t.String())
	}
	source := sourceOf(inner)
	if values := slices.Sorted(slices.Values(source.values[inner.Name()])); source.enums[inner.Name()] && len(values) > 0 {
		tags = append(tags, "enum="+strings.Join(values, ","))
	}
	if via != "" && via != "TypeMeta" {
		tags = append(tags, "via="+via)
	}
	return tags
}

// source is what the comments and constants of a package say.
type source struct {
	// By "Type.Field".
	markers map[string]*marker
	// Types marked +enum.
	enums map[string]bool
	// String constants by type.
	values map[string][]string
}

type marker struct {
	list string
	keys []string
	kind string
}

var sources = map[string]*source{}

func sourceOf(t reflect.Type) *source {
	path := t.PkgPath()
	if found, ok := sources[path]; ok {
		return found
	}
	out := &source{map[string]*marker{}, map[string]bool{}, map[string][]string{}}
	sources[path] = out
	if path == "" {
		return out
	}
	found, err := build.Import(path, ".", 0)
	if err != nil {
		panic(err)
	}
	for _, name := range found.GoFiles {
		file, err := parser.ParseFile(token.NewFileSet(), found.Dir+"/"+name, nil, parser.ParseComments)
		if err != nil {
			panic(err)
		}
		for _, declaration := range file.Decls {
			if general, ok := declaration.(*ast.GenDecl); ok {
				out.read(general)
			}
		}
	}
	return out
}

func (s *source) read(declaration *ast.GenDecl) {
	for _, spec := range declaration.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if slices.Contains(lines(declaration.Doc), "+enum") {
				s.enums[spec.Name.Name] = true
			}
			if structure, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range structure.Fields.List {
					if len(field.Names) > 0 {
						s.markers[spec.Name.Name+"."+field.Names[0].Name] = readMarker(lines(field.Doc))
					}
				}
			}
		case *ast.ValueSpec:
			kind, ok := spec.Type.(*ast.Ident)
			if !ok || len(spec.Values) != 1 {
				continue
			}
			if literal, ok := spec.Values[0].(*ast.BasicLit); ok && literal.Kind == token.STRING {
				value, _ := strconv.Unquote(literal.Value)
				s.values[kind.Name] = append(s.values[kind.Name], value)
			}
		}
	}
}

func readMarker(lines []string) *marker {
	out := &marker{}
	for _, line := range lines {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "+listType":
			out.list = value
		case "+listMapKey":
			out.keys = append(out.keys, value)
		case "+mapType", "+structType":
			out.kind = value
		}
	}
	return out
}

func lines(doc *ast.CommentGroup) (out []string) {
	if doc == nil {
		return nil
	}
	for _, comment := range doc.List {
		out = append(out, strings.TrimSpace(strings.TrimPrefix(comment.Text, "//")))
	}
	return out
}
