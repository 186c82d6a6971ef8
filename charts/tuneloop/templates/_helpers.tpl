{{/* What is wrong with the values in ways that the schema cannot say. */}}
{{- define "tuneloop.check" -}}
{{- if and .Values.scope.clusterWide .Values.scope.namespaces }}
{{- fail "scope.clusterWide is true and scope.namespaces is not empty: choose one. Empty scope.namespaces to watch the whole cluster, or set scope.clusterWide to false." }}
{{- end }}
{{- if and .Values.scope.namespaces (ne (len .Values.scope.namespaces) (len (uniq .Values.scope.namespaces))) }}
{{- fail "scope.namespaces lists a namespace twice: list each once." }}
{{- end }}
{{- end }}

{{/* Namespaces that are watched, as JSON: {"list": [...]}; empty is the whole cluster. */}}
{{- define "tuneloop.namespaces" -}}
{{- if .Values.scope.clusterWide -}}
{{- dict "list" list | toJson -}}
{{- else -}}
{{- dict "list" (.Values.scope.namespaces | default (list .Release.Namespace)) | toJson -}}
{{- end -}}
{{- end }}

{{/* An image reference: include "tuneloop.image" (dict "root" $ "part" "operator") */}}
{{- define "tuneloop.image" -}}
{{- $images := .root.Values.images -}}
{{- with get $images .part -}}
{{ . }}
{{- else -}}
{{ $images.registry }}/{{ .part }}:{{ $images.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels that select a part's pods: include "tuneloop.selector" "operator" */}}
{{- define "tuneloop.selector" -}}
app.kubernetes.io/name: tuneloop-{{ . }}
app.kubernetes.io/part-of: tuneloop
{{- end }}

{{/* Labels of every object: include "tuneloop.labels" (dict "root" $ "part" "operator") */}}
{{- define "tuneloop.labels" -}}
{{ include "tuneloop.selector" .part }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "tuneloop.gatewayURL" -}}
{{- .Values.gateway.url | trimSuffix "/" | default (printf "http://tuneloop-gateway.%s.svc.cluster.local" .Release.Namespace) -}}
{{- end }}

{{/* settings.yaml, as tuneloop_core.settings.Settings reads it. Numbers pass int64 or float64: YAML would write 4.2e+06. */}}
{{- define "tuneloop.settings" -}}
namespace: {{ .Release.Namespace | quote }}
namespaces: {{ (include "tuneloop.namespaces" . | fromJson).list | toJson }}
clusterScopedRights: {{ .Values.scope.readNodes }}
serviceAccount: tuneloop-operator
images:
  trainer: {{ include "tuneloop.image" (dict "root" . "part" "trainer") | quote }}
  server: {{ include "tuneloop.image" (dict "root" . "part" "server") | quote }}
  pullPolicy: {{ .Values.images.pullPolicy }}
  pullSecrets: {{ .Values.images.pullSecrets | toJson }}
store:
  storageClass: {{ .Values.store.storageClassName | quote }}
  accessMode: {{ .Values.store.accessMode }}
  size: {{ .Values.store.size | quote }}
hub:
  endpoint: {{ .Values.hub.endpoint | quote }}
  refusedAddresses: {{ .Values.hub.refusedAddresses | toJson }}
  allowedAddresses: {{ .Values.hub.allowedAddresses | toJson }}
  maxBytes: {{ .Values.hub.maxBytes | int64 }}
secrets: {{ .Values.secrets | toJson }}
gateway:
  url: {{ include "tuneloop.gatewayURL" . | quote }}
  serviceAccount: tuneloop-gateway
  service: tuneloop-gateway
  allowWithoutKeys: {{ .Values.gateway.allowWithoutKeys }}
  maxBodyBytes: {{ .Values.gateway.maxBodyBytes | int64 }}
  timeouts: {{ .Values.gateway.timeouts | toJson }}
  balance: {{ .Values.gateway.balance | toJson }}
  hold:
    maxRequests: {{ .Values.gateway.hold.maxRequests | int64 }}
    maxBytes: {{ .Values.gateway.hold.maxBytes | int64 }}
    maxSeconds: {{ .Values.gateway.hold.maxSeconds }}
    heartbeatSeconds: {{ .Values.gateway.hold.heartbeatSeconds }}
    ongoingPerReplica: {{ .Values.gateway.hold.ongoingPerReplica | int64 }}
  accessLog: {{ .Values.gateway.accessLog | toJson }}
server:
  drainSeconds: {{ .Values.server.drainSeconds | int64 }}
stages:
  cpuRequest: {{ .Values.stages.cpuRequest | quote }}
  memoryRequest: {{ .Values.stages.memoryRequest | quote }}
  memoryLimit: {{ .Values.stages.memoryLimit | quote }}
plan: {{ .Values.plan | toJson }}
simulatedAccelerators: {{ .Values.accelerators.simulated }}
networkPolicies: {{ .Values.networkPolicies.enabled }}
progressIntervalSeconds: {{ .Values.operator.progressIntervalSeconds }}
resyncSeconds: {{ .Values.operator.resyncSeconds }}
{{- end }}

{{/* Pod fields that operator and gateway share: include "tuneloop.pod" (dict "root" $ "part" "operator") */}}
{{- define "tuneloop.pod" -}}
{{- $values := get .root.Values .part -}}
serviceAccountName: tuneloop-{{ .part }}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "tuneloop.selector" .part | nindent 8 }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
volumes:
  - name: settings
    configMap: {name: tuneloop-settings}
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{/* Container fields that both share; `environment` may add variables. */}}
{{- define "tuneloop.container" -}}
image: {{ include "tuneloop.image" (dict "root" .root "part" "operator") | quote }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
env:
  - {name: HOME, value: /tmp}
  - {name: USER, value: tuneloop}  # the user has no name in the image, and libraries ask for one
  - {name: TUNELOOP_SETTINGS, value: /etc/tuneloop/settings.yaml}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  {{- range $name, $value := .environment }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
resources: {{- toYaml (get .root.Values .part).resources | nindent 2 }}
volumeMounts:
  - {name: settings, mountPath: /etc/tuneloop, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* Pod metadata that both share; a changed setting rolls the pods. */}}
{{- define "tuneloop.podMetadata" -}}
{{- $values := get .root.Values .part -}}
annotations:
  checksum/config: {{ include "tuneloop.settings" .root | sha256sum }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "tuneloop.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
